"""What the tests of the tools share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    """A YOLO dataset of six images, each with one bright square on a dark ground."""
    root = tmp_path / 'squares'
    random = np.random.default_rng(0)
    for split, count in (('train', 4), ('val', 2)):
        for kind in ('images', 'labels'):
            (root / kind / split).mkdir(parents=True)
        for number in range(count):
            image = random.integers(0, 40, (64, 64, 3), np.uint8)
            left, top = (int(value) for value in random.integers(2, 30, 2))
            image[top : top + 30, left : left + 30] = 230
            cv2.imwrite(str(root / 'images' / split / f'{number}.png'), image)
            centre = f'{(left + 15) / 64} {(top + 15) / 64} {30 / 64} {30 / 64}'
            (root / 'labels' / split / f'{number}.txt').write_text(f'0 {centre}\n')
    data = root / 'data.yaml'
    data.write_text('train: images/train\nval: images/val\nnames: {0: square}\n')
    return data


@pytest.fixture
def full_disk(disk_of: Callable[[str], Path]) -> Path:
    """An empty folder on a disk of 64 KiB."""
    return disk_of('64k')
