"""Lets the tests of this folder share walking.py: pytest's importlib mode puts no test folder on
the path."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
