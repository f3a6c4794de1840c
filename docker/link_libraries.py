"""Turn equal copies of shared libraries in a directory into links: `link_libraries.py DIRECTORY`.

libNAME.so, libNAME.so.2 and libNAME.so.2.14.5 are one file and two links where they are built,
and three files once they come out of a wheel.
"""

from __future__ import annotations

import filecmp
import sys
from pathlib import Path


def link_copies(folder: Path) -> int:
    """Keep the copy with the longest name of each library; returns the bytes saved."""
    saved_bytes = 0
    for path in sorted(folder.glob('lib*.so*')):
        if path.is_symlink():
            continue
        for other in sorted(folder.glob(f'{path.name}.*'), key=lambda other: -len(other.name)):
            if not other.is_symlink() and filecmp.cmp(path, other, shallow=False):
                saved_bytes += path.stat().st_size
                path.unlink()
                path.symlink_to(other.name)
                break
    return saved_bytes


if __name__ == '__main__':
    print(f'{link_copies(Path(sys.argv[1])) / 2**20:.0f} MiB of copies are links now')
