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
    corners = np.asarray(boxes_xyxy.T, np.float64)
    measurement = np.empty_like(corners)
    np.subtract(corners[2:], corners[:2], out=measurement[2:])
    np.add(corners[2:], corners[:2], out=measurement[:2])
    measurement[:2] *= 0.5
    return measurement


def state_to_boxes(state: State) -> NDArray[np.float64]:
    """Corners of the boxes in `state`: (n, 4) float64 pixels."""
    position = state[POSITION]
    half = position[2:] * 0.5
    corners = np.empty_like(position)
    np.subtract(position[:2], half, out=corners[:2])
    np.add(position[:2], half, out=corners[2:])
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
    kept: float | NDArray[np.float64] = 1.0
    reach: float | NDArray[np.float64] = dt_s
    if size_memory_s is not None:
        fade = np.exp(-dt_s / size_memory_s)
        kept = np.array([[1.0], [1.0], [fade], [fade]])
        reach = np.array([[dt_s], [dt_s], *2 * [[size_memory_s * (1.0 - fade)]]])
    # Row by row, each in place: NumPy is fastest on small arrays of the same shape.
    position, velocity, position_var, cross_cov, velocity_var = state
    predicted = np.empty_like(state)
    new_position, new_velocity, new_position_var, new_cross_cov, new_velocity_var = predicted
    np.add(position, velocity * reach, out=new_position)
    np.multiply(velocity, kept, out=new_velocity)
    np.add(cross_cov, velocity_var * reach, out=new_cross_cov)
    np.add(position_var, (cross_cov + new_cross_cov) * reach, out=new_position_var)
    new_cross_cov *= kept
    scale = position[3] ** 2
    drift = (scale * (velocity_std * velocity_std * dt_s)) * _SIZE_VAR
    new_position_var += scale * (position_std * position_std * dt_s)
    new_position_var += drift * (dt_s * dt_s / 3.0)
    new_cross_cov += drift * (0.5 * dt_s)
    np.add(velocity_var * (kept * kept), drift, out=new_velocity_var)
    # A box that shrinks would turn inside out when it is predicted for long.
    np.maximum(new_position[2:], 0.2 * position[2:], out=new_position[2:])
    return predicted


def update(
    state: State, measurement: NDArray[np.float64], measurement_var: NDArray[np.float64]
) -> State:
    """State after measured boxes: (4, n) pixels with variance (n,) or (4, n) square pixels."""
    position, velocity, position_var, cross_cov, velocity_var = state
    innovation = measurement - position
    total_var = position_var + measurement_var
    position_gain = position_var / total_var
    velocity_gain = cross_cov / total_var
    updated = np.empty_like(state)
    np.add(position, position_gain * innovation, out=updated[POSITION])
    np.add(velocity, velocity_gain * innovation, out=updated[VELOCITY])
    np.multiply(position_gain, measurement_var, out=updated[POSITION_VAR])
    np.multiply(1.0 - position_gain, cross_cov, out=updated[CROSS_COV])
    np.subtract(velocity_var, velocity_gain * cross_cov, out=updated[VELOCITY_VAR])
    return updated
