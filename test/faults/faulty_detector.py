"""The detector, with the backend of this folder among those it knows."""

from __future__ import annotations

from pathlib import Path

from edge_perception.detection import backends

backends.__path__.append(str(Path(__file__).parent / 'backends'))

from edge_perception.nodes.detector import main  # noqa: E402 - it lists the backends

if __name__ == '__main__':
    main()
