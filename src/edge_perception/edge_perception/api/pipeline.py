"""What the gateway needs of the pipeline behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from edge_perception.api.schemas import DetectResult, Health, Metrics, Tracks


@dataclass(frozen=True)
class DetectOptions:
    """What a client may choose.

    Attributes:
        score_threshold: in [0, 1]; None as the gateway is set.
        classes: names to report; none for all.
        backend: what shall run the model; empty for any.
    """

    score_threshold: float | None = None
    classes: tuple[str, ...] = ()
    backend: str = ''


@dataclass(frozen=True)
class Histogram:
    """Durations since a node's start.

    Attributes:
        bounds_s: upper bounds, in seconds.
        cumulative: how many durations lie below each bound.
        count: of all durations.
        sum_s: of all durations.
    """

    bounds_s: Sequence[float]
    cumulative: Sequence[int]
    count: int
    sum_s: float


class Pipeline(Protocol):
    """The pipeline as the gateway sees it. Every method may be called on any thread."""

    def health(self) -> Health:
        """State of the nodes."""

    def metrics(self) -> Metrics:
        """Numbers of the last seconds; `requests` is filled in by the gateway."""

    def histograms(self) -> Mapping[tuple[str, str], Histogram]:
        """Durations by node and stage."""

    def tracks(self) -> Tracks:
        """The newest tracks."""

    def detect(self, image: bytes, options: DetectOptions, deadline_s: float) -> DetectResult:
        """Run the detector on an image file; blocks.

        Args:
            image: a JPEG or PNG file, whose size in pixels was checked.
            options: what the client chose.
            deadline_s: steady time (time.monotonic) after which nobody waits for the answer.

        Raises:
            RequestError: the image is damaged, an option does not fit, or the detector is busy.
        """
