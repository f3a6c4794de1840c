"""Files that are complete or absent: written beside their place, then renamed."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def temporary_beside(path: Path) -> Path:
    """A hidden, unused name in the folder of `path`, so that a rename stays on one disk.

    The suffix is kept, because writers choose the format by it.
    """
    return path.with_name(f'.{path.stem}.{os.getpid()}-{uuid.uuid4().hex[:8]}.part{path.suffix}')
