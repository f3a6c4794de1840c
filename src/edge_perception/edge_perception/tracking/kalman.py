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

import math

import numpy as np
from numpy.typing import NDArray

POSITION, VELOCITY, POSITION_VAR, CROSS_COV, VELOCITY_VAR = range(5)

# The size of a box changes far more slowly than its place: without this, one detection of half a
# person lets the box shrink away until the next one.
_SIZE_VAR = np.array([[1.0], [1.0], [0.01], [0.01]])

State = NDArray[np.float64]


def boxes_to_measurement(boxes_xyxy: NDArray[np.floating]) -> NDArray[np.float64]:
    """Centre and size of boxes: (n, 4) pixels to (4, n) float64."""
    corners = np.asarray(boxes_xyxy.T, np.float64)
    measurement = np.empty_like(corners)
    np.subtract(corners[2:], corners[:2], out=measurement[2:])
    np.add(corners[2:], corners[:2], out=measurement[:2])
    measurement[:2] *= 0.5
    return measurement


def state_to_boxes(state: State, offset: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Corners of the boxes in `state`: (n, 4) float64 pixels.

    Args:
        state: (5, 4, n).
        offset: (2, n) pixels by which their centres are moved.
    """
    position = state[POSITION]
    centre = position[:2] if offset is None else position[:2] + offset
    half = position[2:] * 0.5
    corners = np.empty_like(position)
    np.subtract(centre, half, out=corners[:2])
    np.add(centre, half, out=corners[2:])
    return corners.T


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


def predict(
    state: State,
    dt_s: float | NDArray[np.float64],
    *,
    position_std: float,
    velocity_std: float,
    size_memory_s: float | None = None,
) -> State:
    """State after `dt_s` seconds, one interval for all tracks or (n,).

    The process noise is white noise on the velocity (`position_std`, heights per root second:
    a gait, a jittering box) and on the acceleration (`velocity_std`, heights a second per root
    second), integrated over the interval, so that two short steps equal one long one but for the
    change of the height.

    With `size_memory_s`, which takes one interval for all, the velocity of the size fades with
    this time constant (Singer 1970): what grows because an arm was lifted, or another person came
    in, does not go on growing.
    """
    reach: float | NDArray[np.float64] = dt_s
    if size_memory_s is not None:
        fade = math.exp(-dt_s / size_memory_s)
        size_reach_s = size_memory_s * (1.0 - fade)
        reach = np.array([[dt_s], [dt_s], [size_reach_s], [size_reach_s]])
    # On small arrays NumPy takes as long for two rows as for one. Every third row from the first:
    # the velocity moves the position, and its variance their covariance.
    predicted = state.copy()
    predicted[POSITION::3] += state[VELOCITY::3] * reach
    predicted[POSITION_VAR] += (state[CROSS_COV] + predicted[CROSS_COV]) * reach
    if size_memory_s is not None:
        predicted[VELOCITY::2, 2:] *= fade
        predicted[VELOCITY_VAR, 2:] *= fade * fade
    drift = velocity_std * velocity_std * dt_s
    noise = np.array([drift * dt_s * dt_s / 3.0, drift * dt_s / 2.0, drift]).reshape(3, 1, -1)
    noise = noise * _SIZE_VAR
    noise[0] += position_std * position_std * dt_s
    predicted[POSITION_VAR:] += noise * state[POSITION, 3] ** 2
    # A box that shrinks would turn inside out when it is predicted for long.
    size = predicted[POSITION, 2:]
    np.maximum(size, 0.2 * state[POSITION, 2:], out=size)
    return predicted


def update(
    state: State, measurement: NDArray[np.float64], measurement_var: NDArray[np.float64]
) -> State:
    """State after measured boxes: (4, n) pixels with variance (n,) or (4, n) square pixels."""
    innovation = measurement - state[POSITION]
    # Of position and velocity.
    gain = state[POSITION_VAR : CROSS_COV + 1] / (state[POSITION_VAR] + measurement_var)
    updated = np.empty_like(state)
    np.add(state[: VELOCITY + 1], gain * innovation, out=updated[: VELOCITY + 1])
    np.multiply(gain[0], measurement_var, out=updated[POSITION_VAR])
    np.subtract(state[CROSS_COV:], gain * state[CROSS_COV], out=updated[CROSS_COV:])
    return updated
