"""OC-SORT (Cao et al., Observation-Centric SORT, CVPR 2023).

SORT made to trust observations over its own predictions, in three ways: the direction in which a
track moved adds to the similarity (OCM), tracks left over are tried again with their last
observed box (OCR), and a track that was found again is filtered anew along a straight line from
its last observation (ORU), so that the error of the blind time does not stay in its velocity.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_perception.tracking import kalman
from edge_perception.tracking.association import Indices, assign, unmatched
from edge_perception.tracking.base import LAST_NS, MISSES, Observation, Shown, TrackTable
from edge_perception.tracking.motion import (
    FilterParameters,
    KalmanTracker,
    shown_after_probation,
)

# Rows of TrackTable.memory: the filter at the last observation, centre and seconds of the last
# three observations (the newest first), unit vector of the direction of motion.
_PAST_COUNT = 3
_STATE = slice(0, 20)
_PAST = slice(20, 20 + 3 * _PAST_COUNT)
_DIRECTION = slice(20 + 3 * _PAST_COUNT, 22 + 3 * _PAST_COUNT)


@dataclass(frozen=True)
class OcSortParameters(FilterParameters):
    """Parameters of OC-SORT.

    Attributes:
        min_score: detections under it are not used.
        min_iou: of a detection with the predicted box, and with the last observed one.
        direction_weight: of the direction of motion against the IoU.
        direction_s: the direction is taken from the observation nearest to this time ago.
        probation_s: a track is put out when its detections span this time.
    """

    min_score: float = 0.3
    min_iou: float = 0.3
    direction_weight: float = 0.2
    direction_s: float = 0.3
    probation_s: float = 0.1


class OcSortTracker(KalmanTracker[OcSortParameters]):
    """SORT with observation-centric momentum, recovery and re-update."""

    _memory_rows = 22 + 3 * _PAST_COUNT

    def _associate(
        self, table: TrackTable, observation: Observation
    ) -> tuple[TrackTable, Indices]:
        parameters = self._parameters
        usable = np.flatnonzero(observation.score >= parameters.min_score)
        iou = self._similarity(table, observation)[:, usable]
        momentum = self._momentum(table, observation)[:, usable]
        possible = iou >= parameters.min_iou
        tracks, chosen = assign(np.where(possible, iou + momentum, -9.0), -1.0)
        lost = unmatched(np.arange(len(table)), tracks)
        left = unmatched(usable, chosen)

        last = kalman.state_to_boxes(table.memory[_STATE].reshape(5, 4, -1)[:, :, lost])
        iou = self._box_similarity(last, table.info[:, lost], observation)[:, left]
        rows, columns = assign(iou, parameters.min_iou)
        tracks = np.concatenate((tracks, lost[rows]))
        detections = np.concatenate((usable[chosen], left[columns]))

        table = self._re_updated(table, tracks, observation, detections)
        table = self._corrected(table, tracks, observation, detections)
        self._remember(table, tracks, observation, detections)
        return table, unmatched(left, columns)

    def _momentum(self, table: TrackTable, observation: Observation) -> NDArray[np.float64]:
        """Agreement in direction, (n, m), in +-direction_weight / 2 times the score."""
        past_x, past_y = table.memory[_PAST][:2]
        towards_x = observation.measurement[0] - past_x[:, None]
        towards_y = observation.measurement[1] - past_y[:, None]
        along_x, along_y = table.memory[_DIRECTION]
        cosine = towards_x * along_x[:, None] + towards_y * along_y[:, None]
        cosine /= np.maximum(np.hypot(towards_x, towards_y), 1e-9)
        angle = np.arccos(np.clip(cosine, -1.0, 1.0))
        known = np.abs(along_x) + np.abs(along_y) > 0.0
        agreement = np.where(known[:, None], 0.5 - angle / np.pi, 0.0)
        return agreement * (self._parameters.direction_weight * observation.score)

    def _re_updated(
        self, table: TrackTable, tracks: Indices, observation: Observation, detections: Indices
    ) -> TrackTable:
        """Filter the tracks that were found again along a line from their last observation."""
        again = table.info[MISSES, tracks] > 0
        if not again.any():
            return table
        tracks, detections = tracks[again], detections[again]
        parameters = self._parameters
        current = table.memory[_STATE].reshape(5, 4, -1)[:, :, tracks]
        start, end = current[kalman.POSITION], observation.measurement[:, detections]
        gap_s = (observation.stamp_ns - table.info[LAST_NS, tracks]) * 1e-9
        steps = int(table.info[MISSES, tracks].max()) + 1
        for step in range(1, steps + 1):
            current = kalman.predict(
                current,
                gap_s / steps,
                position_std=parameters.position_noise_std,
                velocity_std=parameters.velocity_noise_std,
            )
            if step < steps:  # the last point is the detection itself, applied by the caller
                virtual = start + (end - start) * (step / steps)
                current = kalman.update(current, virtual, self._measurement_var(virtual))
        state = table.state.copy()
        state[:, :, tracks] = current
        return TrackTable(state, table.score, table.info, table.memory, table.look)

    def _remember(
        self, table: TrackTable, tracks: Indices, observation: Observation, detections: Indices
    ) -> None:
        """Note the observations of `tracks` in the memory of `table`."""
        if not len(tracks):
            return
        memory = table.memory
        past = memory[_PAST].reshape(_PAST_COUNT, 3, -1)[:, :, tracks]
        now_s = observation.stamp_ns * 1e-9
        age_error = np.abs(now_s - past[:, 2] - self._parameters.direction_s)
        nearest = past[age_error.argmin(0), :2, np.arange(len(tracks))].T
        centre = observation.measurement[:2, detections]
        way = centre - nearest
        memory[_DIRECTION.start : _DIRECTION.stop, tracks] = way / np.maximum(np.hypot(*way), 1e-9)
        newest = np.vstack((centre, np.full(len(tracks), now_s)))[None]
        past = np.concatenate((newest, past[:-1])).reshape(-1, len(tracks))
        memory[_PAST.start : _PAST.stop, tracks] = past
        memory[_STATE.start : _STATE.stop, tracks] = table.state[:, :, tracks].reshape(
            20, len(tracks)
        )

    def _initial_memory(self, observation: Observation, born: Indices) -> NDArray[np.float64]:
        memory = np.zeros((self._memory_rows, len(born)))
        measurement = observation.measurement[:, born]
        memory[_STATE] = self._initiate(measurement).reshape(20, -1)
        memory[_PAST] = np.tile(
            np.vstack((measurement[:2], np.full(len(born), observation.stamp_ns * 1e-9))),
            (_PAST_COUNT, 1),
        )
        return memory

    def _shown(self, table: TrackTable, stamp_ns: int) -> Shown:
        return shown_after_probation(table, self._parameters.probation_s)
