"""`python -m qvl`: the same as the `qvl` command."""

from __future__ import annotations

import sys

from qvl.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
