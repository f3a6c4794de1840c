"""How nodes of one process hand data to each other without messages in between.

Each node takes `Links` or None. With links it gets frames, detections and tracks as the arrays
they are; without, from topics. What a node publishes is the same in both cases. Where one process
serves several cameras, each has its channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_perception.types import Detections, Frame, Tracks

T = TypeVar('T')


@dataclass(frozen=True)
class Stamped(Generic[T]):
    """What was found on one frame.

    Attributes:
        value: the arrays.
        stamp_ns: acquisition time of the frame, in nanoseconds.
        frame_id: coordinate frame of the camera.
        names: class id -> class name.
    """

    value: T
    stamp_ns: int
    frame_id: str
    names: Mapping[int, str]


@dataclass(frozen=True)
class DetectAnswer:
    """What the detector found on an image that somebody asked about.

    Attributes:
        detections: in pixels of the image.
        names: class id -> class name.
        backend: the backend that ran the model.
        timings_ms: of preprocess, inference and postprocess.
    """

    detections: Detections
    names: Mapping[int, str]
    backend: str
    timings_ms: Mapping[str, float]


@dataclass(frozen=True)
class DetectRequest:
    """An image that somebody asks the running detector about.

    Attributes:
        image: (h, w, 3) uint8 BGR.
        score_threshold: leave out detections with a lower score; None as the detector is set.
        classes: names to report; none for all that the model knows.
        backend: what shall run the model; empty for whatever does.
        answer: gets the DetectAnswer, or the error.
    """

    image: NDArray[np.uint8]
    score_threshold: float | None
    classes: tuple[str, ...]
    backend: str = ''
    answer: Future[DetectAnswer] = field(default_factory=Future)


class Channel(Generic[T]):
    """Calls every subscriber with each item, in the sender's thread."""

    def __init__(self) -> None:
        self._callbacks: tuple[Callable[[T], None], ...] = ()

    def subscribe(self, callback: Callable[[T], None]) -> Callable[[], None]:
        """Call `callback` with each item from now on; the returned function ends that."""
        self._callbacks = (*self._callbacks, callback)

        def unsubscribe() -> None:
            self._callbacks = tuple(each for each in self._callbacks if each is not callback)

        return unsubscribe

    @property
    def has_subscribers(self) -> bool:
        """Whether an item would reach anybody."""
        return bool(self._callbacks)

    def send(self, item: T) -> None:
        """Hand `item` to every subscriber; they return at once."""
        for callback in self._callbacks:
            callback(item)


@dataclass(frozen=True)
class Links:
    """The channels between the nodes of one process, for one camera.

    Attributes:
        detect_requests: images of whoever asks, which belong to no camera.
        wanted_stamps_ns: of the images that the tracker wants detections on.
        cameras: the channels of each camera, where there are several.
    """

    frames: Channel[Frame] = field(default_factory=Channel)
    detections: Channel[Stamped[Detections]] = field(default_factory=Channel)
    tracks: Channel[Stamped[Tracks]] = field(default_factory=Channel)
    detect_requests: Channel[DetectRequest] = field(default_factory=Channel)
    wanted_stamps_ns: Channel[int] = field(default_factory=Channel)
    cameras: dict[str, Links] = field(default_factory=dict)

    def of(self, camera: str) -> Links:
        """The channels of a camera; these, when it has no name because it is the only one."""
        return self.cameras.setdefault(camera, Links()) if camera else self
