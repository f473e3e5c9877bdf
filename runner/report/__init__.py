"""What people look at: the gallery, the contact sheet, the progress of a run, tables on a terminal.

Begin with `pictures`, the rows that the gallery and the sheet are made of.
"""
