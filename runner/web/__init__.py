"""The verb `web`: the page for txt2img and img2img.

Begin with `page`, the form. `jobs` runs what was asked for, and `text` words the results.
"""
