"""The verb `web`: the page for txt2img, img2img, inpainting and matrices.

Begin with `page`, which puts the tabs together; `tab` is one of them, `fields` its form. `studio` runs what was asked
for as `jobs`, `forms` turns forms into manifests and back, and `text` words the results.
"""
