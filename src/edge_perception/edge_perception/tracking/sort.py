"""SORT (Bewley et al., Simple Online and Realtime Tracking, ICIP 2016).

Kalman prediction, optimal assignment by IoU, one stage. A track is put out after a probation, and
forgotten soon after its last detection.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge_perception.tracking.association import Indices, assign, unmatched
from edge_perception.tracking.base import Observation, Shown, TrackTable
from edge_perception.tracking.motion import (
    FilterParameters,
    KalmanTracker,
    shown_after_probation,
)


@dataclass(frozen=True)
class SortParameters(FilterParameters):
    """Parameters of SORT.

    Attributes:
        min_score: detections under it are not used.
        min_iou: of a detection with the predicted box.
        probation_s: a track is put out when its detections span this time.
    """

    min_score: float = 0.3
    min_iou: float = 0.3
    probation_s: float = 0.1
    lost_s: float = 0.6


class SortTracker(KalmanTracker[SortParameters]):
    """One assignment by IoU with the predicted boxes."""

    def _associate(
        self, table: TrackTable, observation: Observation
    ) -> tuple[TrackTable, Indices]:
        parameters = self._parameters
        usable = np.flatnonzero(observation.score >= parameters.min_score)
        iou = self._similarity(table, observation)[:, usable]
        tracks, chosen = assign(iou, parameters.min_iou)
        table = self._corrected(table, tracks, observation, usable[chosen])
        return table, unmatched(usable, chosen)

    def _shown(self, table: TrackTable, stamp_ns: int) -> Shown:
        return shown_after_probation(table, self._parameters.probation_s)
