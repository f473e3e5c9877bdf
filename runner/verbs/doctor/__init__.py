"""The verb `doctor`: what the machine has, and what `auto` chooses on it.

Begin with `doctor`. `probes` measures number types, and `text` prints.
"""
