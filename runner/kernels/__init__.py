"""Layers that compute what torch's layers compute, faster on a CPU.

Begin with `packed`: weights in the order in which oneDNN reads them. Each file holds one idea, and a picture is right
without any of them: `attention`, `upsampling` (merged with the convolution after it), `opaque` (the bytes of oneDNN's
own tensors).
"""
