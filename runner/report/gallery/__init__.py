"""`gallery.html`, which compares the pictures of a sweep along its axes, and the data that it loads in pieces.

Begin with `build`. `catalog` is the data, `page` the page, `growth` lets it grow
while a run goes on, and `page/` has its markup, its style and its scripts.
"""

from runner.report.gallery.build import GalleryFiles, build, watch

__all__ = ["GalleryFiles", "build", "watch"]
