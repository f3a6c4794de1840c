"""SimpleIOUTracker: ids by the best overlap with the last box, nothing else.

In the spirit of Bochinski et al., High-Speed Tracking-by-Detection Without Using Image
Information (AVSS 2017): no motion model, a box stays where it was detected last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_perception.tracking import kalman
from edge_perception.tracking.association import Indices, assign, unmatched
from edge_perception.tracking.base import (
    LAST_NS,
    MISSES,
    Observation,
    Shown,
    Tracker,
    TrackerParameters,
    TrackTable,
    marked,
)


@dataclass(frozen=True)
class IouParameters(TrackerParameters):
    """Parameters of SimpleIOUTracker.

    Attributes:
        min_score: detections under it are not used.
        min_iou: of a detection with the last box of its track.
        lost_s: how long a track without detections is remembered.
    """

    min_score: float = 0.3
    min_iou: float = 0.3
    lost_s: float = 1.0


class SimpleIOUTracker(Tracker[IouParameters]):
    """Each detection takes the id of the last box that it overlaps best."""

    def _drop_stale(self, table: TrackTable, stamp_ns: int) -> TrackTable:
        fresh = table.info[LAST_NS] >= stamp_ns - int(self._parameters.lost_s * 1e9)
        return table if fresh.all() else table[fresh]

    def _predict(self, table: TrackTable, dt_s: float, motion: Any) -> TrackTable:
        return table

    def _associate(
        self, table: TrackTable, observation: Observation
    ) -> tuple[TrackTable, Indices]:
        parameters = self._parameters
        usable = np.flatnonzero(observation.score >= parameters.min_score)
        iou = self._similarity(table, observation)[:, usable]
        tracks, chosen = assign(iou, parameters.min_iou)
        detections = usable[chosen]
        score, info = marked(table, tracks, observation, detections)
        state = table.state
        if len(tracks):
            state = state.copy()
            state[kalman.POSITION][:, tracks] = observation.measurement[:, detections]
        born = unmatched(usable, chosen)
        return TrackTable(state, score, info, table.memory, table.look), born

    def _shown(self, table: TrackTable, stamp_ns: int) -> Shown:
        return Shown(table.info[MISSES] == 0, table.boxes_xyxy)

    def _initiate(self, measurement: NDArray[np.float64]) -> kalman.State:
        return kalman.initiate(measurement, position_std=0.0, velocity_std=0.0)
