"""Pictures as bytes: encoded and decoded, with the text inside that says how they were made.

Begin with `codec`. `metadata` writes and reads PNG text and EXIF, `infotext` AUTOMATIC1111's text, and `inits` reads
the pictures that img2img begins with.
"""
