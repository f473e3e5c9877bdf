"""The command line.

Begin with `main`: it takes a command line apart and turns errors into messages and exit codes. `verbs` is the table of
verbs, each with what it calls, and `help` writes the help texts from that table and from `conf/`.
"""

from runner.cli.main import main

__all__ = ["main"]
