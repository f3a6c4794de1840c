"""Constant-velocity Kalman filter over all tracks at once, one small block a coordinate.

A box is four coordinates (centre x, centre y, width, height). With noise that is independent
between them, as in SORT (Bewley et al., 2016) and DeepSORT (Wojke et al., 2017), the usual 8x8
filter falls apart into four filters of position and velocity, which are exact and need no matrix
inverse. `state` is (5, 4, n) float64: rows POSITION, VELOCITY and the covariance POSITION_VAR,
CROSS_COV, VELOCITY_VAR; columns centre x, centre y, width, height in pixels; one entry a track.

Time is in seconds throughout, and noise is relative to the size of the object, so that neither
the frame rate nor the resolution needs tuning.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

POSITION, VELOCITY, POSITION_VAR, CROSS_COV, VELOCITY_VAR = range(5)

# The size of a box changes far more slowly than its place: without this, one detection of half a
# person lets the box shrink away until the next one.
_SIZE_VAR = np.array([[1.0], [1.0], [0.01], [0.01]])

State = NDArray[np.float64]


def boxes_to_measurement(boxes_xyxy: NDArray[np.floating]) -> NDArray[np.float64]:
    """Centre and size of boxes: (n, 4) pixels to (4, n) float64."""
    corners = boxes_xyxy.T.astype(np.float64)
    measurement = np.empty_like(corners)
    np.subtract(corners[2:], corners[:2], out=measurement[2:])
    np.add(corners[2:], corners[:2], out=measurement[:2])
    measurement[:2] *= 0.5
    return measurement


def state_to_boxes(state: State) -> NDArray[np.float64]:
    """Corners of the boxes in `state`: (n, 4) float64 pixels."""
    position = state[POSITION]
    half = position[2:] * 0.5
    boxes = np.empty((state.shape[2], 4))
    np.subtract(position[:2], half, out=boxes.T[:2])
    np.add(position[:2], half, out=boxes.T[2:])
    return boxes


def initiate(
    measurement: NDArray[np.float64], *, position_std: float, velocity_std: float
) -> State:
    """State of new tracks at rest.

    Args:
        measurement: (4, n) centre and size in pixels.
        position_std: in object heights.
        velocity_std: in object heights a second.
    """
    state = np.zeros((5, *measurement.shape))
    state[POSITION] = measurement
    scale = measurement[3] ** 2
    state[POSITION_VAR] = scale * position_std**2
    state[VELOCITY_VAR] = scale * velocity_std**2 * _SIZE_VAR
    return state


def predict(state: State, dt_s: float, *, position_std: float, velocity_std: float) -> State:
    """State after `dt_s` seconds.

    The process noise is white noise on the velocity (`position_std`, heights per root second:
    a gait, a jittering box) and on the acceleration (`velocity_std`, heights a second per root
    second), integrated over the interval, so that two short steps equal one long one but for the
    change of the height.
    """
    position, velocity, position_var, cross_cov, velocity_var = state
    predicted = np.empty_like(state)
    scale = position[3] ** 2
    drift = (scale * (velocity_std * velocity_std * dt_s)) * _SIZE_VAR
    step_cov = velocity_var * dt_s
    predicted[POSITION] = position + velocity * dt_s
    predicted[VELOCITY] = velocity
    predicted[POSITION_VAR] = (
        position_var
        + (2.0 * cross_cov + step_cov) * dt_s
        + (scale * (position_std * position_std * dt_s) + drift * (dt_s * dt_s / 3.0))
    )
    predicted[CROSS_COV] = cross_cov + step_cov + drift * (0.5 * dt_s)
    predicted[VELOCITY_VAR] = velocity_var + drift
    # A box that shrinks would turn inside out when it is predicted for long.
    np.maximum(predicted[POSITION, 2:], 0.2 * position[2:], out=predicted[POSITION, 2:])
    return predicted


def update(
    state: State, measurement: NDArray[np.float64], measurement_var: NDArray[np.float64]
) -> State:
    """State after measured boxes: (4, n) pixels with variance (n,) or (4, n) square pixels."""
    innovation = measurement - state[POSITION]
    cross_cov = state[CROSS_COV]
    total_var = state[POSITION_VAR] + measurement_var
    position_gain = state[POSITION_VAR] / total_var
    velocity_gain = cross_cov / total_var
    updated = np.empty_like(state)
    updated[POSITION] = state[POSITION] + position_gain * innovation
    updated[VELOCITY] = state[VELOCITY] + velocity_gain * innovation
    updated[POSITION_VAR] = position_gain * measurement_var
    updated[CROSS_COV] = (1.0 - position_gain) * cross_cov
    updated[VELOCITY_VAR] = state[VELOCITY_VAR] - velocity_gain * cross_cov
    return updated
