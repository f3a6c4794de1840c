"""The nodes, and the programs that run them.

A program needs a second for its imports. Python would answer Ctrl-C in that time with a traceback
of whatever it is just importing; nothing has begun yet, so the process can simply end.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path


def _is_program() -> bool:
    """Whether this process runs a node, and not something that only imports one."""
    # `python -m edge_perception.nodes.NAME`: so it reads while the package is looked for.
    if sys.argv[0] == '-m':
        return any(each.startswith(f'{__name__}.') for each in sys.orig_argv)
    return Path(sys.argv[0]).parent.name == __name__.partition('.')[0]  # lib/edge_perception/NAME


if _is_program():
    # Each program sets its own handlers as soon as it has something to clean up.
    for _signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(_signum, lambda signum, frame: os._exit(0))
