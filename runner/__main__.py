"""`python -m runner` is the same as `runner`."""

import sys

from runner.cli import main

sys.exit(main())
