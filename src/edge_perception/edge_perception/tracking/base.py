"""What all trackers share: time, late detections, ids, output.

A tracker is a pure function of a table of tracks: `_predict` carries the table over an interval,
`_associate` gives it the detections of one frame. `Tracker` keeps the tables of the last seconds,
so that detections of a past frame are applied where they belong and everything since is done
again. Tables are never written to once they are made; each step makes new ones.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_perception.tracking import kalman
from edge_perception.tracking.association import Indices, intersection_over_union
from edge_perception.types import Detections, EdgePerceptionError, Tracks, TrackSource

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# Rows of TrackTable.info.
TRACK_ID, CLASS_ID, FIRST_NS, LAST_NS, LAST_INDEX, HITS, MISSES, FIRST_MISS_NS = range(8)

# Similarity of a pair that must not be: under every threshold, times a score too.
IMPOSSIBLE = -1e9

# By whether the newest detections missed the track.
_SOURCES = np.array([TrackSource.DETECTED, TrackSource.PREDICTED], np.uint8)

# Boxes beyond this are cut: squares and products of float32's largest numbers would overflow.
_COORDINATE_LIMIT = 1e7


class TrackingError(EdgePerceptionError, ValueError):
    """An unknown tracker or a parameter out of its range."""


@dataclass(frozen=True)
class TrackTable:
    """All tracks of a tracker at one instant. Never written to after construction.

    Attributes:
        state: (5, 4, n) float64, see kalman.py.
        score: (n,) float64, of the last detection.
        info: (8, n) int64, rows TRACK_ID ... FIRST_MISS_NS: id, class, stamps of the first and the
            last detection, index of the last detection in its frame, number of detections,
            number of frames with detections since the last one that had this track, stamp of the
            first of these.
        memory: (k, n) float64, whatever else a tracker remembers of each track's motion.
        look: (n, k) float32, what each looks like; k is 0 where a tracker does not know.
    """

    state: NDArray[np.float64]
    score: NDArray[np.float64]
    info: NDArray[np.int64]
    memory: NDArray[np.float64]
    look: NDArray[np.float32]

    @classmethod
    def empty(cls, memory_rows: int = 0, look_size: int = 0) -> TrackTable:
        return cls(
            np.empty((5, 4, 0)),
            np.empty(0),
            np.empty((8, 0), np.int64),
            np.empty((memory_rows, 0)),
            np.empty((0, look_size), np.float32),
        )

    def __len__(self) -> int:
        return len(self.score)

    def __getitem__(self, mask: NDArray[np.bool_]) -> TrackTable:
        kept = mask.nonzero()[0]
        return TrackTable(
            self.state.take(kept, 2),
            self.score.take(kept),
            self.info.take(kept, 1),
            self.memory.take(kept, 1),
            self.look.take(kept, 0),
        )

    @property
    def boxes_xyxy(self) -> NDArray[np.float64]:
        return kalman.state_to_boxes(self.state)

    def joined(self, other: TrackTable) -> TrackTable:
        """These tracks, then those of `other`."""
        if not len(other):
            return self
        return TrackTable(
            np.concatenate((self.state, other.state), 2),
            np.concatenate((self.score, other.score)),
            np.concatenate((self.info, other.info), 1),
            np.concatenate((self.memory, other.memory), 1),
            np.concatenate((self.look, other.look)),
        )


@dataclass(frozen=True)
class Observation:
    """The detections of one frame as the trackers use them, in an order of their own.

    Attributes:
        stamp_ns: of the frame.
        boxes_xyxy: (n, 4) float64 pixels.
        measurement: (4, n) float64, centre and size.
        score: (n,) float64.
        class_id: (n,) int64.
    """

    stamp_ns: int
    boxes_xyxy: NDArray[np.float64]
    measurement: NDArray[np.float64]
    score: NDArray[np.float64]
    class_id: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.score)


@dataclass(frozen=True)
class TrackerParameters:
    """Parameters of every tracker.

    Attributes:
        class_aware: a detection continues only tracks of its own class.
        history_s: how far back a detection may lie.
    """

    class_aware: bool = True
    history_s: float = 2.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name.endswith('_s') and not (0.0 <= value < float('inf')):
                raise TrackingError(f'{name} must be a number of seconds >= 0, got {value}')


@dataclass(frozen=True)
class TrackingQuality:
    """How far the tracks of the newest frame can be relied upon.

    Attributes:
        uncertainty: largest standard deviation of a shown box's centre, in heights; 0 without
            tracks.
        failed_part: part of the boxes, but for those that the newest detections missed, that did
            not follow the picture into this frame; 0 without pictures.
        outside_motion: part of the picture that changes outside all boxes; 0 without pictures and
            while the camera moves.
    """

    uncertainty: float = 0.0
    failed_part: float = 0.0
    outside_motion: float = 0.0


@dataclass
class TrackerStatistics:
    """What a tracker has met since it was made.

    Attributes:
        steps: frames stepped.
        corrections: calls of correct() that were applied.
        late_corrections: of these, those that went back in time.
        ignored_corrections: too old, from before a reset, or second ones for the same stamp.
        invalid_detections: detections dropped for a box that is not finite or has no area.
        resets: explicit ones and those after a stamp that jumped back.
        replayed_steps: steps done again for late corrections.
        flow_followed: boxes that followed the picture over a step, replays included.
        flow_failed: boxes for which the picture told nothing usable.
    """

    steps: int = 0
    corrections: int = 0
    late_corrections: int = 0
    ignored_corrections: int = 0
    invalid_detections: int = 0
    resets: int = 0
    replayed_steps: int = 0
    flow_followed: int = 0
    flow_failed: int = 0


class Shown(NamedTuple):
    """What a tracker puts out.

    Attributes:
        mask: (n,) which tracks of the table.
        boxes_xyxy: (n, 4) float64 pixels, of those and of the others.
    """

    mask: NDArray[np.bool_]
    boxes_xyxy: NDArray[np.float64]


@dataclass
class _Entry:
    """One instant of the history: what led to it and the table after it."""

    stamp_ns: int
    motion: Any
    observation: Observation | None
    table: TrackTable
    # Id that each detection was given when it began a track, 0 where it did not: a replay that
    # begins the same track again gives it the same id.
    birth_ids: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    # What of the table is put out; None until it was asked for.
    shown: Shown | None = None


P = TypeVar('P', bound=TrackerParameters)
AnyParameters = TypeVar('AnyParameters', bound='DataclassInstance')


class Tracker(ABC, Generic[P]):
    """Gives every frame its boxes with stable ids from detections that come seldom and late.

    Call `step` on every frame, in the order of time, and `correct` whenever detections arrive.
    A stamp that jumps back resets the tracker; ids go on, so that no id is ever used twice.
    Not thread safe: the caller serialises.
    """

    _memory_rows = 0
    _look_size = 0

    def __init__(self, parameters: P) -> None:
        self._parameters = parameters
        self.statistics = TrackerStatistics()
        self._next_id = 1
        self._clear()

    def _clear(self) -> None:
        self._entries: list[_Entry] = []
        self._base: TrackTable = TrackTable.empty(self._memory_rows, self._look_size)
        self._base_ns: int | None = None
        self._held: list[Observation] = []
        self._tracks = Tracks.empty()

    @property
    def parameters(self) -> P:
        """The parameters; assign a whole new set to change some, from the next call on."""
        return self._parameters

    @parameters.setter
    def parameters(self, parameters: P) -> None:
        if type(parameters) is not type(self._parameters):
            raise TrackingError(
                f'{type(self).__name__} takes {type(self._parameters).__name__}, '
                f'got {type(parameters).__name__}'
            )
        self._parameters = parameters

    def set(self, **changes: Any) -> None:
        """Change some parameters, by name.

        Raises:
            TrackingError: a name is unknown or a value is out of its range.
        """
        self._parameters = changed(self._parameters, **changes)

    def reset(self) -> None:
        """Forget all tracks and held detections. Ids go on."""
        self._clear()
        self.statistics.resets += 1

    def step(self, stamp_ns: int, image: NDArray[np.uint8] | None = None) -> Tracks:
        """Go on to the next frame.

        Args:
            stamp_ns: acquisition time. One that is before the last resets the tracker; the last
                one again changes nothing and returns the same tracks.
            image: (h, w, 3) uint8 BGR or (h, w) uint8 grey, or None.

        Returns:
            The tracks on this frame. They don't change when detections come later.
        """
        stamp_ns = int(stamp_ns)
        if self._entries and stamp_ns <= self._entries[-1].stamp_ns:
            if stamp_ns == self._entries[-1].stamp_ns:
                return self._tracks
            self.reset()
        self.statistics.steps += 1
        if self._held:
            self._drop_unusable_held(stamp_ns)
        motion = self._observe(stamp_ns, image)
        due = [held for held in self._held if held.stamp_ns <= stamp_ns]
        if due:
            self._held = [held for held in self._held if held.stamp_ns > stamp_ns]
            for observation in due:
                self._append(_Entry(observation.stamp_ns, motion, observation, self._base))
        if not due or due[-1].stamp_ns != stamp_ns:
            self._append(_Entry(stamp_ns, motion, None, self._base))
        self._trim(stamp_ns)
        self._tracks = self._output()
        return self._tracks

    def correct(self, stamp_ns: int, detections: Detections) -> None:
        """Give the tracker the detections of a frame: a past one, the newest, or one to come.

        Detections of a past frame are applied at that frame, and the motion since is replayed.
        For a frame that was never stepped (a dropped one) the state in between is predicted.
        Detections of a frame to come are held until a step reaches it. Ignored and counted are
        detections older than `history_s`, from before a reset, and a second set for one stamp.
        No detections at all (an empty set) says that nothing was seen, which ages the tracks.

        Args:
            stamp_ns: stamp of the frame that was detected on.
            detections: in pixels of the original image.
        """
        stamp_ns = int(stamp_ns)
        newest_ns = self._entries[-1].stamp_ns if self._entries else None
        if self._is_too_old(stamp_ns, newest_ns) or any(
            held.stamp_ns == stamp_ns for held in self._held
        ):
            self.statistics.ignored_corrections += 1
            return
        observation = self._to_observation(stamp_ns, detections)
        if newest_ns is None or stamp_ns > newest_ns:
            self._held.append(observation)
            self._held.sort(key=lambda held: held.stamp_ns)
            self.statistics.corrections += 1
            return
        index = bisect_left(self._entries, stamp_ns, key=lambda entry: entry.stamp_ns)
        entry = self._entries[index]
        if entry.stamp_ns != stamp_ns:
            self._entries.insert(index, _Entry(stamp_ns, entry.motion, observation, self._base))
        elif entry.observation is None:
            entry.observation = observation
        else:
            self.statistics.ignored_corrections += 1
            return
        self.statistics.corrections += 1
        self.statistics.late_corrections += 1
        self._replay(index)

    @property
    def quality(self) -> TrackingQuality:
        """How far the tracks of the newest frame can be relied upon."""
        return TrackingQuality(uncertainty=self._uncertainty())

    def _uncertainty(self) -> float:
        """Largest standard deviation of a shown box's centre, in heights."""
        if not self._entries or not len(self._tracks):
            return 0.0
        table = self._entries[-1].table
        relative_var = self._position_var(table) / table.state[kalman.POSITION, 3] ** 2
        return float(np.sqrt(relative_var[self._newest_shown().mask].max(initial=0.0)))

    def _newest_shown(self) -> Shown:
        """What is put out of the newest frame."""
        entry = self._entries[-1]
        if entry.shown is None:
            entry.shown = self._shown(entry.table, entry.stamp_ns)
        return entry.shown

    def _position_var(self, table: TrackTable) -> NDArray[np.float64]:
        """Variance of each box's centre: (n,) square pixels."""
        variance: NDArray[np.float64] = table.state[kalman.POSITION_VAR, 0]
        return variance

    def _is_too_old(self, stamp_ns: int, newest_ns: int | None) -> bool:
        if newest_ns is None or stamp_ns > newest_ns:
            return False
        # At or before the base there is no state left, before the first frame there was none.
        limit_ns = self._entries[0].stamp_ns - 1 if self._base_ns is None else self._base_ns
        return stamp_ns <= limit_ns or stamp_ns < newest_ns - self._history_ns

    def _drop_unusable_held(self, stamp_ns: int) -> None:
        """Drop held detections that belong to a time before a reset.

        These are the ones from before the first frame that is stepped, and, after a jump back,
        those too far ahead to be of this pass.
        """
        newest_usable_ns = stamp_ns + self._history_ns
        oldest_usable_ns = stamp_ns if not self._entries else self._entries[0].stamp_ns
        usable = [h for h in self._held if oldest_usable_ns <= h.stamp_ns <= newest_usable_ns]
        if len(usable) == len(self._held):
            return
        self.statistics.ignored_corrections += len(self._held) - len(usable)
        self.statistics.corrections -= len(self._held) - len(usable)
        self._held = usable

    @property
    def _history_ns(self) -> int:
        return int(self._parameters.history_s * 1e9)

    def _to_observation(self, stamp_ns: int, detections: Detections) -> Observation:
        score = detections.score.astype(np.float64)
        corners = detections.xyxy.T.astype(np.float64, order='C')
        np.maximum(corners, -_COORDINATE_LIMIT, out=corners)
        np.minimum(corners, _COORDINATE_LIMIT, out=corners)
        # The result must not depend on the order of detections: best first, ties by position.
        order = np.lexsort((detections.class_id, *corners, -score))
        # Written so that NaN, which compares false, is dropped too.
        has_size, has_score = corners[2:] > corners[:2], np.isfinite(score)
        if np.count_nonzero(has_size) + np.count_nonzero(has_score) < 3 * len(score):
            valid = has_size.all(0) & has_score
            self.statistics.invalid_detections += len(valid) - np.count_nonzero(valid)
            order = order[valid[order]]
        corners = corners.take(order, 1)
        return Observation(
            stamp_ns,
            corners.T,
            kalman.boxes_to_measurement(corners.T),
            score.take(order),
            detections.class_id.take(order).astype(np.int64),
        )

    def _append(self, entry: _Entry) -> None:
        self._compute(entry, self._entries[-1] if self._entries else None)
        self._entries.append(entry)

    def _compute(self, entry: _Entry, previous: _Entry | None) -> None:
        """Fill in the table of `entry` from the one before it."""
        table = previous.table if previous else self._base
        since_ns = previous.stamp_ns if previous else self._base_ns
        if since_ns is not None and len(table):
            table = self._drop_stale(table, entry.stamp_ns)
            if len(table):
                table = self._predict(table, (entry.stamp_ns - since_ns) * 1e-9, entry.motion)
        if entry.observation is not None:
            table, born = self._associate(table, entry.observation)
            if len(born):
                table = table.joined(self._begin(entry, born))
        entry.table, entry.shown = table, None

    def _begin(self, entry: _Entry, born: Indices) -> TrackTable:
        """New tracks from the detections `born` of `entry`."""
        observation = entry.observation
        assert observation is not None
        if not len(entry.birth_ids):
            entry.birth_ids = np.zeros(len(observation), np.int64)
        ids = entry.birth_ids[born]
        new = np.flatnonzero(ids == 0)
        ids[new] = np.arange(self._next_id, self._next_id + len(new))
        self._next_id += len(new)
        entry.birth_ids[born] = ids
        info = np.zeros((8, len(born)), np.int64)
        info[TRACK_ID] = ids
        info[CLASS_ID] = observation.class_id[born]
        info[FIRST_NS : LAST_NS + 1] = entry.stamp_ns
        info[LAST_INDEX] = born
        info[HITS] = 1
        measurement = observation.measurement[:, born]
        return TrackTable(
            self._initiate(measurement),
            observation.score[born],
            info,
            self._initial_memory(observation, born),
            self._initial_look(observation, born),
        )

    def _replay(self, index: int) -> None:
        """Compute the entries from `index` on once more."""
        before = self._entries[-1].table
        previous = self._entries[index - 1] if index else None
        for position in range(index, len(self._entries)):
            entry = self._entries[position]
            self._compute(entry, previous)
            previous = entry
        self.statistics.replayed_steps += len(self._entries) - index - 1
        self._keep_ids(before, index)

    def _keep_ids(self, before: TrackTable, index: int) -> None:
        """Give ids that were already shown back to the tracks that took over their detections.

        A late detection can begin a track earlier than it was begun without it. The early one then
        owns the detections of the other, whose id was published, and must go on under it.
        """
        after = self._entries[-1].table
        known = before.info[TRACK_ID]
        fresh = np.flatnonzero(~np.isin(after.info[TRACK_ID], known))
        if not len(fresh):
            return
        gone = np.flatnonzero(~np.isin(known, after.info[TRACK_ID]))
        owners = {
            (int(before.info[LAST_NS, i]), int(before.info[LAST_INDEX, i])): int(known[i])
            for i in gone
        }
        swapped: dict[int, int] = {}
        for i in fresh:
            owner = owners.get((int(after.info[LAST_NS, i]), int(after.info[LAST_INDEX, i])))
            if owner is not None:
                track_id = int(after.info[TRACK_ID, i])
                swapped[track_id], swapped[owner] = owner, track_id
        if not swapped:
            return
        for position in range(index, len(self._entries)):
            entry = self._entries[position]
            info = entry.table.info.copy()
            info[TRACK_ID] = [swapped.get(int(i), int(i)) for i in info[TRACK_ID]]
            entry.table = replace(entry.table, info=info)
            # In exchange, so that the unused id stays bound to one detection and one only.
            entry.birth_ids = np.array(
                [swapped.get(int(i), int(i)) for i in entry.birth_ids], np.int64
            )

    def _trim(self, newest_ns: int) -> None:
        oldest_ns = newest_ns - self._history_ns
        entries = self._entries
        while entries[0].stamp_ns < oldest_ns:
            self._base, self._base_ns = entries[0].table, entries[0].stamp_ns
            del entries[0]

    def _output(self) -> Tracks:
        entry = self._entries[-1]
        table = entry.table
        mask, boxes = self._newest_shown()
        score, info = table.score, table.info
        if np.count_nonzero(mask) < len(table):
            boxes, score, info = boxes[mask], score[mask], info.compress(mask, 1)
        since_s = (entry.stamp_ns - info[FIRST_NS : LAST_NS + 1]) * 1e-9
        age_s, time_since_detection_s = since_s.astype(np.float32)
        return Tracks(
            xyxy=boxes.astype(np.float32, order='C'),
            score=score.astype(np.float32),
            class_id=info[CLASS_ID].astype(np.int32),
            track_id=info[TRACK_ID].copy(),
            age_s=age_s,
            time_since_detection_s=time_since_detection_s,
            source=_SOURCES.take(info[MISSES] > 0),
        )

    def _similarity(self, table: TrackTable, observation: Observation) -> NDArray[np.float64]:
        """IoU of tracks and detections: (n, m); below every threshold for another class."""
        return self._box_similarity(table.boxes_xyxy, table.info, observation)

    def _box_similarity(
        self,
        boxes_xyxy: NDArray[np.float64],
        info: NDArray[np.int64],
        observation: Observation,
    ) -> NDArray[np.float64]:
        iou = intersection_over_union(boxes_xyxy, observation.boxes_xyxy)
        if not self._parameters.class_aware:
            return iou
        same = info[CLASS_ID][:, None] == observation.class_id
        return iou if same.all() else np.where(same, iou, IMPOSSIBLE)

    # What a tracker is made of.

    def _observe(self, stamp_ns: int, image: NDArray[np.uint8] | None) -> Any:
        """Motion of the picture since the last frame, for `_predict`; None where unknown."""
        return None

    @abstractmethod
    def _drop_stale(self, table: TrackTable, stamp_ns: int) -> TrackTable:
        """The tracks that are still worth keeping at `stamp_ns`."""

    @abstractmethod
    def _predict(self, table: TrackTable, dt_s: float, motion: Any) -> TrackTable:
        """The tracks `dt_s` seconds later."""

    @abstractmethod
    def _associate(
        self, table: TrackTable, observation: Observation
    ) -> tuple[TrackTable, Indices]:
        """The tracks after the detections of a frame; indices of detections to begin tracks."""

    @abstractmethod
    def _shown(self, table: TrackTable, stamp_ns: int) -> Shown:
        """Which tracks to put out, and where."""

    @abstractmethod
    def _initiate(self, measurement: NDArray[np.float64]) -> kalman.State:
        """State of new tracks from (4, n) centre and size."""

    def _initial_memory(self, observation: Observation, born: Indices) -> NDArray[np.float64]:
        return np.empty((0, len(born)))

    def _initial_look(self, observation: Observation, born: Indices) -> NDArray[np.float32]:
        return np.empty((len(born), 0), np.float32)


def marked(
    table: TrackTable, tracks: Indices, observation: Observation, detections: Indices
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Score and info of `table` after the pairs (tracks, detections); all others are missed."""
    score, info = table.score.copy(), table.info.copy()
    if len(tracks) < len(table):
        info[FIRST_MISS_NS][info[MISSES] == 0] = observation.stamp_ns
        info[MISSES] += 1
    score[tracks] = observation.score.take(detections)
    # A row first, then one index: two indices at once are far slower.
    info[CLASS_ID][tracks] = observation.class_id.take(detections)
    info[LAST_NS][tracks] = observation.stamp_ns
    info[LAST_INDEX][tracks] = detections
    info[HITS][tracks] += 1
    info[MISSES][tracks] = 0
    return score, info


def changed(parameters: AnyParameters, **changes: Any) -> AnyParameters:
    """`parameters` with some of them changed, by name.

    Raises:
        TrackingError: a name is unknown or a value is out of its range.
    """
    unknown = sorted(set(changes) - set(vars(parameters)))
    if unknown:
        raise TrackingError(
            f'{type(parameters).__name__} has no {", ".join(unknown)}; '
            f'it has {", ".join(sorted(vars(parameters)))}'
        )
    return replace(parameters, **changes)
