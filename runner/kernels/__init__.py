"""Layers that compute what torch's layers compute, faster on a CPU.

Begin with `replace`, which puts them into place. Each other file holds one idea, and a picture is right without any of
them: `packed` (weights in oneDNN's order), `upsampling` (merged with the convolution after it), `attention` (by matrix
products), `small` (what serves small models alone), `opaque` (the bytes of oneDNN's own tensors).
"""
