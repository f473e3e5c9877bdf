"""What people look at: the gallery, the contact sheet, the progress of a run, tables on a terminal.

Begin with `wanted`, what a manifest asks for, and `axes`, by which the gallery and the sheet show it.
"""
