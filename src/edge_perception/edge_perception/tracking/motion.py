"""Trackers that move their tracks by a constant-velocity Kalman filter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_perception.tracking import kalman
from edge_perception.tracking.association import Indices, are_all
from edge_perception.tracking.base import (
    FIRST_NS,
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
class FilterParameters(TrackerParameters):
    """Parameters of the trackers with a Kalman filter.

    Standard deviations are in object heights, so that they fit any distance and resolution.

    Attributes:
        measurement_std: of a detected box.
        position_noise_std: of the process, a root second.
        velocity_noise_std: of the process, a second a root second.
        initial_velocity_std: a second.
        lost_s: how long a track without detections is remembered.
    """

    measurement_std: float = 0.05
    position_noise_std: float = 0.2
    velocity_noise_std: float = 0.5
    initial_velocity_std: float = 0.7
    lost_s: float = 1.0


FP = TypeVar('FP', bound=FilterParameters)


class KalmanTracker(Tracker[FP]):
    """Motion and corrections by the filter; association is left to the subclass."""

    def _drop_stale(self, table: TrackTable, stamp_ns: int) -> TrackTable:
        fresh = table.info[LAST_NS] >= stamp_ns - int(self._parameters.lost_s * 1e9)
        return table if fresh.all() else table[fresh]

    def _predict(self, table: TrackTable, dt_s: float, motion: Any) -> TrackTable:
        parameters = self._parameters
        state = kalman.predict(
            table.state,
            dt_s,
            position_std=parameters.position_noise_std,
            velocity_std=parameters.velocity_noise_std,
        )
        return TrackTable(state, table.score, table.info, table.memory, table.look)

    def _initiate(self, measurement: NDArray[np.float64]) -> kalman.State:
        return kalman.initiate(
            measurement,
            position_std=self._parameters.measurement_std,
            velocity_std=self._parameters.initial_velocity_std,
        )

    def _measurement_var(self, measurement: NDArray[np.float64]) -> NDArray[np.float64]:
        return (self._parameters.measurement_std * measurement[3]) ** 2

    def _corrected(
        self, table: TrackTable, tracks: Indices, observation: Observation, detections: Indices
    ) -> TrackTable:
        """`table` after the pairs (tracks, detections); the other tracks were missed.

        All its arrays but `state` are its own, and `state` too where there are pairs.
        """
        score, info = marked(table, tracks, observation, detections)
        state = table.state
        if len(tracks):
            measurement = observation.measurement.take(detections, 1)
            variance = self._measurement_var(measurement)
            if are_all(tracks, len(table)):
                state = kalman.update(state, measurement, variance)
            else:
                state = state.copy()
                state[:, :, tracks] = kalman.update(state.take(tracks, 2), measurement, variance)
        return TrackTable(state, score, info, table.memory.copy(), table.look.copy())


def shown_after_probation(table: TrackTable, probation_s: float) -> Shown:
    """The tracks that the newest detections had and whose detections span `probation_s`."""
    seen_ns = table.info[LAST_NS] - table.info[FIRST_NS]
    proven = seen_ns >= int(probation_s * 1e9)
    return Shown(proven & (table.info[MISSES] == 0), table.boxes_xyxy)
