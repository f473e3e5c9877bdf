"""The contact sheet `grid.png`: every picture of a run, small, in its place among the axes that differ.

Begin with `write`. `arrange` says what stands where, `paper` how large it is and on which page, `draw` draws it;
`lettering` writes texts in any script, with the `fonts` of this machine.
"""

from runner.report.sheet.arrange import Items
from runner.report.sheet.write import write

__all__ = ["Items", "write"]
