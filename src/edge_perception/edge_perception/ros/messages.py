"""vision_msgs <-> arrays. Field use is that of DESIGN: id is the track id, class_id the name."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import numpy as np
from builtin_interfaces.msg import Time
from std_msgs.msg import Header
from vision_msgs.msg import (
    Detection2D,
    Detection2DArray,
    LabelInfo,
    ObjectHypothesisWithPose,
    VisionClass,
)

from edge_perception.ros.links import Stamped
from edge_perception.types import Detections, EdgePerceptionError, Tracks, TrackSource


class MessageError(EdgePerceptionError, ValueError):
    """A message does not hold what its topic promises."""


def stamp_ns(header: Header) -> int:
    """The stamp of a header in nanoseconds."""
    return int(header.stamp.sec) * 1_000_000_000 + int(header.stamp.nanosec)


def make_header(stamp_ns: int, frame_id: str) -> Header:
    """A header with the stamp given in nanoseconds.

    Raises:
        MessageError: the stamp is beyond what a message can hold.
    """
    sec, nanosec = divmod(stamp_ns, 1_000_000_000)
    if not -(2**31) <= sec < 2**31:
        raise MessageError(f'a stamp of {sec} s does not fit a header')
    return Header(stamp=Time(sec=sec, nanosec=nanosec), frame_id=frame_id)


class ClassNames:
    """Class names by number, learnt in the order in which names come in."""

    def __init__(self) -> None:
        self.names: dict[int, str] = {}
        self._ids: dict[str, int] = {}

    def id_of(self, name: str) -> int:
        """The number of `name`; a new name gets the next one."""
        class_id = self._ids.setdefault(name, len(self._ids))
        self.names[class_id] = name
        return class_id


def to_message(stamped: Stamped[Detections] | Stamped[Tracks]) -> Detection2DArray:
    """The Detection2DArray of one frame.

    Tracks carry their id as text, detections an empty id. A class without a name is written as
    its number.
    """
    objects = stamped.value
    header = make_header(stamped.stamp_ns, stamped.frame_id)
    corners = objects.xyxy.astype(np.float64)
    centers = (corners[:, :2] + corners[:, 2:]) * 0.5
    sizes = corners[:, 2:] - corners[:, :2]
    ids = (
        [str(i) for i in objects.track_id] if isinstance(objects, Tracks) else [''] * len(objects)
    )
    message = Detection2DArray(header=header)
    detections = []
    for center, size, score, class_id, track_id in zip(
        centers.tolist(),
        sizes.tolist(),
        objects.score.tolist(),
        objects.class_id.tolist(),
        ids,
        strict=True,
    ):
        result = ObjectHypothesisWithPose()
        result.hypothesis.class_id = stamped.names.get(class_id, str(class_id))
        result.hypothesis.score = score
        detection = Detection2D(header=header, id=track_id, results=[result])
        detection.bbox.center.position.x, detection.bbox.center.position.y = center
        detection.bbox.size_x, detection.bbox.size_y = size
        detections.append(detection)
    message.detections = detections
    return message


def _boxes_and_hypotheses(message: Detection2DArray, names: ClassNames) -> dict[str, np.ndarray]:
    boxes = np.array(
        [
            (
                detection.bbox.center.position.x,
                detection.bbox.center.position.y,
                detection.bbox.size_x,
                detection.bbox.size_y,
            )
            for detection in message.detections
        ],
        np.float64,
    ).reshape(-1, 4)
    # A detector may give several hypotheses: the best one is what the object counts as.
    hypotheses = []
    for detection in message.detections:
        if not detection.results:
            raise MessageError('a detection has no result: its class and score are unknown')
        hypotheses.append(
            max((result.hypothesis for result in detection.results), key=lambda h: h.score)
        )
    scores = np.array([h.score for h in hypotheses], np.float64)
    if np.isnan(scores).any():
        raise MessageError('a detection has a score that is not a number')
    with np.errstate(over='ignore', invalid='ignore'):
        half = boxes[:, 2:] * 0.5
        corners = np.hstack([boxes[:, :2] - half, boxes[:, :2] + half]).astype(np.float32)
    if not np.isfinite(corners).all():
        raise MessageError('a detection has a box that is not finite')
    return {
        'xyxy': corners,
        'score': np.clip(scores, 0, 1).astype(np.float32),
        'class_id': np.array([names.id_of(h.class_id) for h in hypotheses], np.int32),
    }


def message_to_detections(message: Detection2DArray, names: ClassNames) -> Stamped[Detections]:
    """The detections of one frame.

    Raises:
        MessageError: a box is not finite or a detection has no hypothesis.
    """
    return Stamped(
        Detections(**_boxes_and_hypotheses(message, names)),
        stamp_ns(message.header),
        message.header.frame_id,
        names.names,
    )


def _track_id(text: str) -> int:
    # More digits than this are no int64, and int() has a limit of its own.
    if len(text) <= 20:
        with contextlib.suppress(ValueError):
            value = int(text)
            if -(2**63) <= value < 2**63:
                return value
    raise MessageError(f'a track id is no number: {text[:40]!r}')


def message_to_tracks(message: Detection2DArray, names: ClassNames) -> Stamped[Tracks]:
    """The tracks of one frame; what the message does not carry (age, source) is 0.

    Raises:
        MessageError: as `message_to_detections`, or an id is no number.
    """
    ids = np.array([_track_id(detection.id) for detection in message.detections], np.int64)
    n = len(ids)
    return Stamped(
        Tracks(
            **_boxes_and_hypotheses(message, names),
            track_id=ids,
            age_s=np.zeros(n, np.float32),
            time_since_detection_s=np.zeros(n, np.float32),
            source=np.full(n, TrackSource.DETECTED, np.uint8),
        ),
        stamp_ns(message.header),
        message.header.frame_id,
        names.names,
    )


def label_info(names: Mapping[int, str], threshold: float, header: Header) -> LabelInfo:
    """The classes of a model, and the score under which its detections are left out."""
    return LabelInfo(
        header=header,
        class_map=[
            VisionClass(class_id=class_id, class_name=name) for class_id, name in names.items()
        ],
        threshold=threshold,
    )
