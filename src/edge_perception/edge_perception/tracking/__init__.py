"""Tracking: detections in, tracks on every frame out. No ROS."""

from __future__ import annotations

from typing import Any

from edge_perception.tracking.base import (
    Tracker,
    TrackerParameters,
    TrackerStatistics,
    TrackingError,
    TrackingQuality,
    changed,
)
from edge_perception.tracking.bytetrack import ByteTracker, ByteTrackParameters
from edge_perception.tracking.hybrid import HybridParameters, HybridTracker
from edge_perception.tracking.iou import IouParameters, SimpleIOUTracker
from edge_perception.tracking.ocsort import OcSortParameters, OcSortTracker
from edge_perception.tracking.schedule import AdaptiveParameters, AdaptiveSchedule
from edge_perception.tracking.sort import SortParameters, SortTracker

TRACKERS: dict[str, tuple[type[Tracker[Any]], type[TrackerParameters]]] = {
    'iou': (SimpleIOUTracker, IouParameters),
    'sort': (SortTracker, SortParameters),
    'bytetrack': (ByteTracker, ByteTrackParameters),
    'ocsort': (OcSortTracker, OcSortParameters),
    'hybrid': (HybridTracker, HybridParameters),
}

__all__ = [
    'TRACKERS',
    'AdaptiveParameters',
    'AdaptiveSchedule',
    'ByteTrackParameters',
    'ByteTracker',
    'HybridParameters',
    'HybridTracker',
    'IouParameters',
    'OcSortParameters',
    'OcSortTracker',
    'SimpleIOUTracker',
    'SortParameters',
    'SortTracker',
    'Tracker',
    'TrackerParameters',
    'TrackerStatistics',
    'TrackingError',
    'TrackingQuality',
    'create_tracker',
]


def create_tracker(name: str = 'hybrid', **parameters: Any) -> Tracker[Any]:
    """A new tracker.

    Args:
        name: 'iou', 'sort', 'bytetrack', 'ocsort' or 'hybrid'.
        parameters: fields of its parameter dataclass, the rest at their defaults.

    Raises:
        TrackingError: no such tracker, no such parameter, or a value out of its range.
    """
    if name not in TRACKERS:
        raise TrackingError(f'no tracker {name!r}; there are {", ".join(TRACKERS)}')
    tracker_type, parameter_type = TRACKERS[name]
    return tracker_type(changed(parameter_type(), **parameters))
