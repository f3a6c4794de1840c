"""When to detect: as rarely as the tracks allow.

The tracker asks for a detection when its boxes become doubtful (their uncertainty grows, or the
picture no longer tells where they went) or when something moves that it has no track of. What
still moves there after a detection is no object, but leaves in the wind or a reflection: from then
on only more than that counts. A detection costs time, and may take no more than its share of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge_perception.tracking.base import TrackingError, TrackingQuality

# How fast motion that was no object is forgotten, part a detection. It is learned at once.
_FORGETTING = 0.2


@dataclass(frozen=True)
class AdaptiveParameters:
    """Parameters of the adaptive schedule.

    Attributes:
        max_uncertainty: standard deviation of a box's centre, in object heights, at which a
            detection is asked for.
        max_failed_part: part of the boxes that may have lost the picture.
        min_outside_motion: part of the picture that changes outside all boxes, beyond what
            moves there anyway, at which a detection is asked for: somebody new.
        min_interval_s: between two detections, at least.
        max_interval_s: between two detections, at most: a still newcomer shows in no other way.
        max_load: part of the time that detections may take, in (0, 1].
    """

    max_uncertainty: float = 0.12
    max_failed_part: float = 0.3
    min_outside_motion: float = 0.001
    min_interval_s: float = 0.1
    max_interval_s: float = 1.0
    max_load: float = 0.7

    def __post_init__(self) -> None:
        if not 0.0 <= self.min_interval_s <= self.max_interval_s:
            raise TrackingError(
                'min_interval_s must be from 0 to max_interval_s, '
                f'got {self.min_interval_s} and {self.max_interval_s}'
            )
        if not 0.0 < self.max_load <= 1.0:
            raise TrackingError(f'max_load must be in (0, 1], got {self.max_load}')


class AdaptiveSchedule:
    """Decides frame by frame whether to ask for a detection, and says why.

    Call `wants` after each step, and `detection_took` before the step that the answer precedes.
    """

    def __init__(self, parameters: AdaptiveParameters | None = None) -> None:
        """Ask for the first frame.

        Args:
            parameters: None for the defaults; may be replaced at any time.
        """
        self.parameters = parameters or AdaptiveParameters()
        self.reset()

    def reset(self) -> None:
        """Begin anew, as after a jump of the stamps."""
        self._asked_ns: int | None = None
        self._is_under_way = self._has_come = False
        self._motion_asked = self._motion_usual = 0.0
        self._detection_s = 0.0
        self._frames_since = 0
        self.reason = ''
        self.chosen_n = 0

    def detection_took(self, duration_s: float) -> None:
        """Tell that the detection asked for has come, and how long it took.

        The mean of the last few counts against max_load.
        """
        self._is_under_way, self._has_come = False, True
        self._detection_s += (duration_s - self._detection_s) * (0.3 if self._detection_s else 1.0)

    def wants(self, stamp_ns: int, quality: TrackingQuality) -> bool:
        """Whether this frame should be detected on.

        While the answer to a request is on its way nothing but the longest interval asks again.

        Args:
            stamp_ns: of the frame that the tracker has just stepped.
            quality: of its tracks.

        Returns:
            True with the cause in `reason`, and `chosen_n` the frames since the last request.
        """
        self._frames_since += 1
        if self._has_come:
            self._has_come = False
            self._learn(quality.outside_motion)
        reason = self._why(stamp_ns, quality)
        if not reason:
            return False
        self.reason, self.chosen_n = reason, self._frames_since
        self._asked_ns, self._frames_since, self._is_under_way = stamp_ns, 0, True
        self._motion_asked = quality.outside_motion
        return True

    def _learn(self, outside_motion: float) -> None:
        """Take what moves after a detection as it did before for what moves here anyway.

        Not more: somebody may have come in while the detection was under way.
        """
        left = min(outside_motion, self._motion_asked)
        faded = self._motion_usual + _FORGETTING * (left - self._motion_usual)
        self._motion_usual = max(left, faded)

    def _why(self, stamp_ns: int, quality: TrackingQuality) -> str:
        parameters = self.parameters
        if self._asked_ns is None or stamp_ns < self._asked_ns:
            return 'first frame'
        since_s = (stamp_ns - self._asked_ns) * 1e-9
        # Half a millisecond of grace: stamps of a camera are not exact multiples.
        least_s = max(parameters.min_interval_s, self._detection_s / parameters.max_load) - 5e-4
        if since_s < least_s:
            return ''
        if since_s >= parameters.max_interval_s - 5e-4:
            return 'longest interval'
        # Its answer may settle the doubt; one that never comes must not stop the detections.
        if self._is_under_way:
            return ''
        if quality.outside_motion - self._motion_usual >= parameters.min_outside_motion:
            return 'motion outside the tracks'
        if quality.uncertainty >= parameters.max_uncertainty:
            return 'uncertain tracks'
        if quality.failed_part > parameters.max_failed_part:
            return 'tracks lost in the picture'
        return ''
