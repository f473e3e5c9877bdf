"""The verb `export`: a run folder's pictures as a dataset that training programs read.

Begin with `export`. `selection` finds what is exported and in which order, `samples` says what is told of a picture,
and each form of dataset has its module: `webdataset`, `imagefolder`, `parquet`.
"""
