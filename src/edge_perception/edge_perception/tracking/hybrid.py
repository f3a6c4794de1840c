"""The default tracker: a detector that speaks seldom and late, a filter that fills in.

Association in two stages by score as in ByteTrack. A detection that fits its track (IoU of 0.5 or
more) corrects the filter; one that does not begins the track anew at the detection, under the
same id, since then the track had lost its object.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_perception.tracking import kalman
from edge_perception.tracking.association import (
    Indices,
    assign,
    unmatched,
)
from edge_perception.tracking.base import (
    FIRST_MISS_NS,
    HITS,
    MISSES,
    Observation,
    TrackTable,
)
from edge_perception.tracking.motion import FilterParameters, KalmanTracker


@dataclass(frozen=True)
class HybridParameters(FilterParameters):
    """Parameters of the hybrid tracker.

    Attributes:
        high_score: detections of the first stage.
        low_score: detections of the second stage; those under it are not used.
        new_track_score: detections that may begin a track.
        sure_score: a new track of this score is put out at once, others when seen again.
        min_fused: similarity times score of a pair of the first stage.
        min_similarity_second: similarity of a pair of the second stage.
        reinitialise_iou: under this IoU with its detection, a track begins anew there.
        coast_s: how long a track is still put out after a frame of detections missed it.
    """

    high_score: float = 0.5
    low_score: float = 0.1
    new_track_score: float = 0.6
    sure_score: float = 0.7
    min_fused: float = 0.1
    min_similarity_second: float = 0.3
    reinitialise_iou: float = 0.5
    coast_s: float = 0.3
    lost_s: float = 2.0


class HybridTracker(KalmanTracker[HybridParameters]):
    """Two-stage association; detections that don't fit begin their track anew."""

    def _associate(
        self, table: TrackTable, observation: Observation
    ) -> tuple[TrackTable, Indices]:
        parameters = self._parameters
        score = observation.score
        high = np.flatnonzero(score >= parameters.high_score)
        low = np.flatnonzero((score < parameters.high_score) & (score >= parameters.low_score))
        iou = self._similarity(table, observation)
        rows, columns = assign((iou * score)[:, high], parameters.min_fused)
        tracks, detections = rows, high[columns]
        left = unmatched(high, columns)

        waiting = unmatched(np.arange(len(table)), rows)
        rows, columns = assign(iou[np.ix_(waiting, low)], parameters.min_similarity_second)
        tracks = np.concatenate((tracks, waiting[rows]))
        detections = np.concatenate((detections, low[columns]))

        fits = iou[tracks, detections] >= parameters.reinitialise_iou
        table = self._corrected(table, tracks, observation, detections)
        if not fits.all():
            table = self._reinitialised(table, tracks[~fits], observation, detections[~fits])
        keep = (table.info[HITS] > 1) | (table.info[MISSES] == 0)
        born = left[score[left] >= parameters.new_track_score]
        return (table if keep.all() else table[keep]), born

    def _reinitialised(
        self, table: TrackTable, tracks: Indices, observation: Observation, detections: Indices
    ) -> TrackTable:
        """Tracks put at their detections, with the velocity that the filter had come to."""
        state = table.state.copy()
        fresh = self._initiate(observation.measurement[:, detections])
        fresh[kalman.VELOCITY] = state[kalman.VELOCITY][:, tracks]
        state[:, :, tracks] = fresh
        return TrackTable(state, table.score, table.info, table.memory)

    def _shown(self, table: TrackTable, stamp_ns: int) -> NDArray[Any]:
        parameters = self._parameters
        info = table.info
        proven = (info[HITS] > 1) | (table.score >= parameters.sure_score)
        coasting = (stamp_ns - info[FIRST_MISS_NS]) <= int(parameters.coast_s * 1e9)
        return proven & ((info[MISSES] == 0) | coasting)
