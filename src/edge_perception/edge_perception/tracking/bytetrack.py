"""ByteTrack (Zhang et al., Multi-Object Tracking by Associating Every Detection Box, ECCV 2022).

Detections of high score are assigned first; those of low score, often people half hidden, may
only continue tracks that are left. New tracks come from high scores and must be seen twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge_perception.tracking.association import Indices, assign, unmatched
from edge_perception.tracking.base import (
    HITS,
    MISSES,
    Observation,
    Shown,
    TrackTable,
)
from edge_perception.tracking.motion import FilterParameters, KalmanTracker


@dataclass(frozen=True)
class ByteTrackParameters(FilterParameters):
    """Parameters of ByteTrack.

    Attributes:
        high_score: detections of the first stage.
        low_score: detections of the second stage; those under it are not used.
        new_track_score: detections that may begin a track.
        min_fused: IoU times score of a pair of the first stage.
        min_iou_second: IoU of a pair of the second stage.
        min_fused_new: IoU times score of a detection with a track that was seen once.
    """

    high_score: float = 0.5
    low_score: float = 0.1
    new_track_score: float = 0.6
    min_fused: float = 0.2
    min_iou_second: float = 0.5
    min_fused_new: float = 0.3


class ByteTracker(KalmanTracker[ByteTrackParameters]):
    """Assignment in two stages, by score."""

    def _associate(
        self, table: TrackTable, observation: Observation
    ) -> tuple[TrackTable, Indices]:
        parameters = self._parameters
        score = observation.score
        high = np.flatnonzero(score >= parameters.high_score)
        low = np.flatnonzero((score < parameters.high_score) & (score >= parameters.low_score))
        iou = self._similarity(table, observation)
        fused = iou * score
        confirmed = table.info[HITS] > 1
        known, fresh = np.flatnonzero(confirmed), np.flatnonzero(~confirmed)

        rows, columns = assign(fused[np.ix_(known, high)], parameters.min_fused)
        tracks, detections = [known[rows]], [high[columns]]
        high = unmatched(high, columns)

        # Only tracks that were seen on the last frame may continue by a weak detection.
        waiting = unmatched(known, rows)
        waiting = waiting[table.info[MISSES, waiting] == 0]
        rows, columns = assign(iou[np.ix_(waiting, low)], parameters.min_iou_second)
        tracks.append(waiting[rows])
        detections.append(low[columns])

        rows, columns = assign(fused[np.ix_(fresh, high)], parameters.min_fused_new)
        tracks.append(fresh[rows])
        detections.append(high[columns])
        high = unmatched(high, columns)

        table = self._corrected(
            table, np.concatenate(tracks), observation, np.concatenate(detections)
        )
        keep = (table.info[HITS] > 1) | (table.info[MISSES] == 0)
        born = high[score[high] >= parameters.new_track_score]
        return (table if keep.all() else table[keep]), born

    def _shown(self, table: TrackTable, stamp_ns: int) -> Shown:
        return Shown((table.info[HITS] > 1) & (table.info[MISSES] == 0), table.boxes_xyxy)
