"""`python -m qvl`: the same as the `qvl` command.

Python looks for modules in the folder that it was started in first, which may be anybody's: a
`json.py` beside the pictures there must not be run.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]
    from qvl.cli.main import main

    sys.exit(main())
