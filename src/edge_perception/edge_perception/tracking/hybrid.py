"""The default tracker: a detector that speaks seldom and late, a picture that fills in.

Association in two stages by score as in ByteTrack (Zhang et al., ECCV 2022), by the IoU of boxes
that are widened by the uncertainty of the track, so that one rule holds for a detector that sees
every frame and for one that sees two a second (widened boxes: Yang et al., C-BIoU, WACV 2023).

Every track has two boxes. The filter is corrected by detections only and knows how the object
moved on the long run. From there the carried box follows the picture (flow.py) with a velocity of
its own, which carries it on where the picture tells nothing, and it is the one that is put out. At
the next detection either may fit: behind a lamp post or another person the picture leads astray
and the filter does not, where somebody turns round it is the other way. The better one counts. A
carried box that fits is corrected like a filter of its own: the picture tells far better than two
detections how far somebody went, which evens out their jitter. Any other one begins anew at the
filter.

What an object looks like (appearance.py) speaks for or against a pair, brings back an id that was
lost for longer than motion can be foretold, and tells whether somebody is still there whom the
detector missed or was not asked about.

How fast things change is taken from the tracks: where objects run, or the video does, all noise
grows as if time went faster.

A detection that fits its track (IoU of 0.3 or more) corrects the filter; one that does not begins
the track anew at the detection, under the same id, since then the track had lost its object.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_perception.tracking import appearance, kalman
from edge_perception.tracking.association import (
    Indices,
    assign,
    intersection_over_union,
    near,
    overlap_enough,
    paired_iou,
    pairs_of,
    unmatched,
)
from edge_perception.tracking.base import (
    CLASS_ID,
    FIRST_MISS_NS,
    HITS,
    IMPOSSIBLE,
    LAST_NS,
    MISSES,
    Observation,
    Shown,
    TrackingError,
    TrackingQuality,
    TrackTable,
)
from edge_perception.tracking.flow import PictureMotion
from edge_perception.tracking.motion import FilterParameters, KalmanTracker
from edge_perception.tracking.picture import to_small_colour, to_small_grey

# Rows of TrackTable.memory: offset of the carried box from the filter's, x and y in pixels; the
# variance of its place, square pixels; velocity of the picture in it, x and y in pixels a second,
# and the variance of that.
OFFSET, CARRIED_VAR, OWN_VELOCITY, OWN_VELOCITY_VAR = slice(0, 2), 2, slice(3, 5), 5

# Logarithm of the heights' ratio beyond which somebody is not known again.
_MAX_GROWTH = 0.35
# A box that seems to move this much faster than its filter, in heights a second, follows
# something else.
_MAX_SURPRISE = 1.5
# A carried box further from its detection than this, in variances, was led astray.
_MAX_INNOVATION_SQ = 4.0
# Two images further apart than this have nothing to do with each other.
_MAX_IMAGE_INTERVAL_S = 1.0


@dataclass(frozen=True)
class HybridParameters(FilterParameters):
    """Parameters of the hybrid tracker.

    Attributes:
        size_memory_s: how long a box goes on growing or shrinking as it did.
        lost_s: how long a track may go on by its motion after detections missed it first.
        lost_known_s: the same for one whose look is known.
        patience: frames of detections that may miss it before that, however seldom they come.
        recognise_s: how long it may be known again by its look.
        unseen_s: how long it is remembered while no frame is detected on at all.
        high_score: detections of the first stage.
        low_score: detections of the second stage; those under it are not used.
        new_track_score: detections that may begin a track.
        relative_new_score: in relation to the scores of the tracks that are established: what is
            far below them is likely none of the kind, whatever the detector's scale is.
        min_fused: similarity times score of a pair of the first stage.
        min_similarity_second: similarity of a pair of the second stage.
        widening: of the boxes compared, in standard deviations of the track's position.
        max_widening: in object heights.
        height_weight: what a difference in height takes off the similarity, a factor e.
        reinitialise_iou: under this IoU with its detection, a track begins anew there.
        look_size_px: longer side of the small image that looks are taken from; 0: no looks.
        look_weight: of the look in the similarity of a pair.
        look_unlike: unlikeness from which on two looks differ entirely.
        look_neutral: part of it that speaks neither for nor against a pair.
        look_rate: part of a new look in the track's.
        recognise_unlike: unlikeness up to which a lost track is known again.
        recognise_reach: distance up to which it is, in heights, at once.
        recognise_speed: what the distance grows by, heights a second.
        usual_speed: of three quarters of the objects, heights a second: people who walk. Faster
            ones raise the pace, and with it all noise.
        max_pace: limit of that.
        still_unlike: unlikeness to what the picture shows in its place, up to which a missed
            track is still put out.
        gone_unlike: unlikeness above which a track is not put out, missed or not.
        gone_after_s: how long after its detection that may be: until then the detector is right.
        coast_s: how long any track is still put out after a frame of detections missed it.
        coast_hidden_s: the same for one that another track's box overlaps.
        flow_size_px: longer side of the small image that boxes follow.
        flow_std: error of a box that follows the picture, object heights a root second.
    """

    velocity_noise_std: float = 0.3
    position_noise_std: float = 0.15
    size_memory_s: float = 2.0
    lost_s: float = 0.7
    lost_known_s: float = 1.0
    patience: int = 2
    recognise_s: float = 2.0
    unseen_s: float = 2.0
    high_score: float = 0.5
    low_score: float = 0.25
    new_track_score: float = 0.6
    relative_new_score: float = 0.9
    min_fused: float = 0.2
    min_similarity_second: float = 0.5
    widening: float = 1.5
    max_widening: float = 0.75
    height_weight: float = 0.3
    reinitialise_iou: float = 0.3
    look_size_px: int = 256
    look_weight: float = 1.2
    look_unlike: float = 0.2
    look_neutral: float = 0.5
    look_rate: float = 0.3
    recognise_unlike: float = 0.05
    still_unlike: float = 0.1
    gone_unlike: float = 0.15
    gone_after_s: float = 0.15
    recognise_reach: float = 0.5
    recognise_speed: float = 1.0
    usual_speed: float = 0.7
    max_pace: float = 3.0
    coast_s: float = 0.0
    coast_hidden_s: float = 0.0
    flow_size_px: int = 448
    flow_std: float = 0.04

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ('size_memory_s', 'usual_speed', 'look_unlike', 'recognise_unlike'):
            if not getattr(self, name) > 0.0:
                raise TrackingError(f'{name} must be above 0, got {getattr(self, name)}')
        if not self.max_pace >= 1.0:
            raise TrackingError(f'max_pace must be 1 or more, got {self.max_pace}')


class HybridTracker(KalmanTracker[HybridParameters]):
    """Association by widened boxes; one box that follows the picture, one that does not."""

    _memory_rows = 6
    _look_size = appearance.LOOK_SIZE

    def _clear(self) -> None:
        super()._clear()
        self._picture: tuple[int, NDArray[np.uint8]] | None = None
        self._motion: PictureMotion | None = None
        self._failed_part = 0.0
        # By stamp: the small image, and the looks of what was detected on it.
        self._colours: dict[int, tuple[NDArray[np.uint8], float]] = {}
        self._looks: dict[int, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}

    @property
    def quality(self) -> TrackingQuality:
        if self._motion is None:
            return super().quality
        return TrackingQuality(
            uncertainty=self._uncertainty(),
            failed_part=self._failed_part,
            outside_motion=self._motion.outside_motion(self._tracks.xyxy),
        )

    def _position_var(self, table: TrackTable) -> NDArray[np.float64]:
        variance: NDArray[np.float64] = table.memory[CARRIED_VAR]
        return variance

    def _observe(self, stamp_ns: int, image: NDArray[np.uint8] | None) -> PictureMotion | None:
        self._failed_part = 0.0
        self._motion = self._motion_since_last(stamp_ns, image)
        return self._motion

    def _motion_since_last(
        self, stamp_ns: int, image: NDArray[np.uint8] | None
    ) -> PictureMotion | None:
        before = self._picture
        self._picture = None
        if image is None:
            return None
        self._keep_colours(stamp_ns, image)
        grey, scale = to_small_grey(image, self._parameters.flow_size_px)
        self._picture = (stamp_ns, grey)
        if before is None or before[1].shape != grey.shape:
            return None
        interval_s = (stamp_ns - before[0]) * 1e-9
        if interval_s > _MAX_IMAGE_INTERVAL_S:
            return None
        return PictureMotion(before[1], grey, scale=scale, interval_s=interval_s)

    def _keep_colours(self, stamp_ns: int, image: NDArray[np.uint8]) -> None:
        """Keep what is needed to take looks, for as long as detections may come."""
        if self._parameters.look_size_px:
            size_px = self._parameters.look_size_px
            self._colours[stamp_ns] = to_small_colour(image, size_px)
        oldest_ns = stamp_ns - self._history_ns
        for kept in (self._colours, self._looks):
            # In the order of time, but for a late detection here and there.
            while kept and (first_ns := next(iter(kept))) < oldest_ns:
                del kept[first_ns]

    def _looks_of(
        self, observation: Observation
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Looks of the detections and how much of each is seen; None without a picture."""
        looks = self._looks.get(observation.stamp_ns)
        if looks is None and len(observation) and observation.stamp_ns in self._colours:
            picture, scale = self._colours[observation.stamp_ns]
            looks = appearance.looks_of(picture, scale, observation.boxes_xyxy)
            self._looks[observation.stamp_ns] = looks
        return looks

    def _drop_stale(self, table: TrackTable, stamp_ns: int) -> TrackTable:
        parameters, info = self._parameters, table.info
        # No track was missed before it was last seen.
        oldest_ns = stamp_ns - int(min(parameters.lost_s, parameters.unseen_s) * 1e9)
        if not np.count_nonzero(info[LAST_NS] <= oldest_ns):
            return table
        since_ns = stamp_ns - np.where(info[MISSES] > 0, info[FIRST_MISS_NS], info[LAST_NS])
        unseen = (info[MISSES] == 0) & (since_ns > parameters.unseen_s * 1e9)
        forgotten = ~table.look.any(1) | (since_ns > parameters.recognise_s * 1e9)
        stale = unseen | (self._lost(table, stamp_ns) & forgotten)
        return table[~stale] if np.count_nonzero(stale) else table

    def _lost(self, table: TrackTable, stamp_ns: int) -> NDArray[np.bool_]:
        """Which tracks motion can't find again: (n,)."""
        parameters, info = self._parameters, table.info
        lost: NDArray[np.bool_] = info[MISSES] > parameters.patience
        if np.count_nonzero(lost):
            known = table.look[lost].any(1)
            limit_s = np.where(known, parameters.lost_known_s, parameters.lost_s)
            lost[lost] = stamp_ns - info[FIRST_MISS_NS][lost] > limit_s * 1e9
        return lost

    def _pace(self, table: TrackTable) -> float:
        """How much faster things change than where people walk: 1 or more."""
        parameters = self._parameters
        velocity, height = table.state[kalman.VELOCITY, :2], table.state[kalman.POSITION, 3]
        x_sq, y_sq = velocity * velocity
        speed_sq = (x_sq + y_sq) / (height * height)
        if not np.count_nonzero(speed_sq > parameters.usual_speed**2):
            return 1.0
        speed_sq = speed_sq[table.info[HITS] > 2]
        if not len(speed_sq):
            return 1.0
        speed_sq.sort()
        speed = float(speed_sq[(3 * len(speed_sq)) // 4]) ** 0.5
        return min(max(speed / parameters.usual_speed, 1.0), parameters.max_pace)

    def _predict(self, table: TrackTable, dt_s: float, motion: PictureMotion | None) -> TrackTable:
        parameters = self._parameters
        pace = self._pace(table)
        # The same motion in 1 / pace of the time has so much more noise a second.
        velocity_noise_std = parameters.velocity_noise_std * pace**1.5
        state = table.state
        predicted = kalman.predict(
            state,
            dt_s,
            position_std=parameters.position_noise_std * pace**0.5,
            velocity_std=velocity_noise_std,
            size_memory_s=parameters.size_memory_s,
        )
        growth = predicted[kalman.POSITION_VAR, 0] - state[kalman.POSITION_VAR, 0]
        np.maximum(growth, 0.0, out=growth)
        carried = table.memory.copy()
        if motion is None:
            carried[CARRIED_VAR] += growth
            return TrackTable(predicted, table.score, table.info, carried, table.look)
        height, velocity = state[kalman.POSITION, 3], state[kalman.VELOCITY, :2]
        velocity_var = state[kalman.VELOCITY_VAR, 0]
        # The filter's velocity and the one seen in the picture, weighted by their variance.
        own = carried[OWN_VELOCITY]
        own_var = carried[OWN_VELOCITY_VAR] + (height * velocity_noise_std) ** 2 * dt_s
        share = velocity_var / (velocity_var + own_var)
        known, known_var = velocity + share * (own - velocity), share * own_var

        seen = motion.of_boxes(self._boxes(table), known, known_var)
        surprise = seen.velocity - known
        # Gait and sway: a step of the torso is not a step of the box. Most of it comes back.
        sway_var = (parameters.flow_std * height) ** 2 * (pace / motion.interval_s)
        seen_var = (seen.velocity_var + sway_var) / np.maximum(seen.support, 0.05) ** 2
        surprise_sq = (surprise**2).sum(0)
        expected = (seen.support > 0.0) & (surprise_sq < 9.0 * (known_var + seen_var))
        followed = (expected | (seen.support > 0.4)) & (
            surprise_sq < (_MAX_SURPRISE * pace * height) ** 2
        )
        # What moves in the place of one who was missed may be what hides her.
        missed = table.info[MISSES] > 0
        if np.count_nonzero(missed):
            followed &= ~missed | (expected & (seen.support > 0.3))
        count = int(np.count_nonzero(followed))
        self.statistics.flow_followed += count
        self.statistics.flow_failed += len(table) - count
        # Of one who was missed nobody expects that she is still in the picture.
        present = np.count_nonzero(~missed)
        lost = np.count_nonzero(~missed & ~followed)
        self._failed_part = lost / present if present else 0.0
        centre = state[kalman.POSITION, :2]
        predicted[kalman.POSITION, :2] += motion.camera_velocity(centre) * dt_s
        carried[OFFSET] += (known - velocity + np.where(followed, surprise, 0.0)) * dt_s
        carried[CARRIED_VAR] += np.where(followed, seen_var * (dt_s * motion.interval_s), growth)
        gain = np.where(followed, own_var / (own_var + seen_var), 0.0)
        carried[OWN_VELOCITY] += gain * (seen.velocity - own)
        carried[OWN_VELOCITY_VAR] = (1.0 - gain) * own_var
        return TrackTable(predicted, table.score, table.info, carried, table.look)

    def _boxes(self, table: TrackTable) -> NDArray[np.float64]:
        return kalman.state_to_boxes(table.state, table.memory[OFFSET])

    def _associate(
        self, table: TrackTable, observation: Observation
    ) -> tuple[TrackTable, Indices]:
        parameters, score = self._parameters, observation.score
        # Detections come best first.
        high_count = np.count_nonzero(score >= parameters.high_score)
        used_count = np.count_nonzero(score >= parameters.low_score)
        boxes = table.boxes_xyxy
        similarity = self._widened_similarity(table, boxes, observation)
        looks = self._looks_of(observation)
        if looks is not None:
            unlike, known = appearance.unlikeness(table.look, looks[0])
            similarity -= self._look_against(unlike, known)
        lost = self._lost(table, observation.stamp_ns)
        if np.count_nonzero(lost):
            similarity[lost] = IMPOSSIBLE
        fused = similarity[:, :high_count] * score[:high_count]
        tracks, detections = assign(fused, parameters.min_fused)
        left = unmatched(np.arange(high_count), detections)

        # A weak detection may continue a track, if that was seen more than once.
        if len(tracks) < len(table) and high_count < used_count:
            waiting = unmatched(np.arange(len(table)), tracks)
            waiting = waiting[table.info[HITS][waiting] > 1]
            rows, columns = assign(
                similarity[waiting, high_count:used_count], parameters.min_similarity_second
            )
            tracks = np.concatenate((tracks, waiting[rows]))
            detections = np.concatenate((detections, high_count + columns))

        if len(left):
            left = left[score[left] >= self._new_track_score(table)]
        if looks is not None and len(left) and len(tracks) < len(table):
            free = unmatched(np.arange(len(table)), tracks)
            pairs = np.ix_(free, left)
            worth = np.where(
                known[pairs], 1.0 - unlike[pairs] / parameters.recognise_unlike, IMPOSSIBLE
            )
            worth[~self._in_reach(table, free, observation, left)] = IMPOSSIBLE
            rows, columns = assign(worth, 0.0)
            tracks = np.concatenate((tracks, free[rows]))
            detections = np.concatenate((detections, left[columns]))
            left = unmatched(left, columns)

        fits = overlap_enough(
            boxes, tracks, observation.boxes_xyxy, detections, parameters.reinitialise_iou
        )
        expected = table.state[kalman.POSITION]
        table = self._corrected(table, tracks, observation, detections)
        measurement = observation.measurement.take(detections, 1)
        if np.count_nonzero(fits) < len(fits):
            anew = ~fits
            self._reinitialise(table, tracks[anew], measurement[:, anew])
        self._correct_carried(table, tracks, expected, measurement)
        if looks is not None and len(tracks):
            rate = parameters.look_rate * looks[1][detections]
            table.look[tracks] = appearance.mixed(table.look[tracks], looks[0][detections], rate)
        if len(tracks) == len(table):
            return table, left
        keep = (table.info[HITS] > 1) | (table.info[MISSES] == 0)
        return (table if keep.all() else table[keep]), left

    def _look_against(
        self, unlike: NDArray[np.float32], known: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        """What the look takes off the similarity of each pair, (n, m): under 0 where it fits."""
        parameters = self._parameters
        against = np.minimum(unlike / parameters.look_unlike, 1.0)
        against -= parameters.look_neutral
        against *= parameters.look_weight * known
        return against

    def _in_reach(
        self, table: TrackTable, free: Indices, observation: Observation, left: Indices
    ) -> NDArray[np.bool_]:
        """Whether the tracks `free` may have come to the detections `left` by now: (n, m)."""
        parameters = self._parameters
        centre = kalman.boxes_to_measurement(self._boxes(table)[free])[:2, :, None]
        found = observation.measurement[:, left]
        height = table.state[kalman.POSITION, 3, free][:, None]
        distance = np.hypot(*(centre - found[:2, None]))
        since_s = (observation.stamp_ns - table.info[LAST_NS, free]) * 1e-9
        reach = parameters.recognise_reach + parameters.recognise_speed * since_s
        possible: NDArray[np.bool_] = distance < reach[:, None] * height
        possible &= np.abs(np.log(found[3] / height)) < _MAX_GROWTH
        if parameters.class_aware:
            possible &= table.info[CLASS_ID, free][:, None] == observation.class_id[left]
        return possible

    def _new_track_score(self, table: TrackTable) -> float:
        parameters = self._parameters
        established = table.info[HITS] > 3
        if not np.count_nonzero(established):
            return parameters.new_track_score
        usual = parameters.relative_new_score * float(np.median(table.score[established]))
        return max(parameters.new_track_score, min(usual, parameters.relative_new_score))

    def _widened_similarity(
        self, table: TrackTable, boxes: NDArray[np.float64], observation: Observation
    ) -> NDArray[np.float64]:
        """Similarity of the better of a track's two boxes, (n, m); `boxes` are the filter's."""
        parameters = self._parameters
        height = table.state[kalman.POSITION, 3]
        widening = np.minimum(
            parameters.widening * np.sqrt(table.state[kalman.POSITION_VAR, 0]),
            parameters.max_widening * height,
        )
        found = observation.boxes_xyxy
        candidates = near(boxes, found, widening)
        carried_apart = np.count_nonzero(table.memory[OFFSET]) > 0
        if carried_apart:
            carried = self._boxes(table)
            candidates |= near(carried, found, widening)
        rows, columns = pairs_of(candidates)
        if parameters.class_aware:
            same = table.info[CLASS_ID][rows] == observation.class_id[columns]
            if np.count_nonzero(same) < len(same):
                rows, columns = rows[same], columns[same]
        worth = paired_iou(boxes, rows, found, columns, widening)
        if carried_apart:
            np.maximum(worth, paired_iou(carried, rows, found, columns, widening), out=worth)
        growth = np.log(observation.measurement[3].take(columns) / height.take(rows))
        worth -= parameters.height_weight * np.abs(growth)
        if len(worth) == candidates.size:
            return worth.reshape(candidates.shape)
        similarity = np.empty(candidates.shape)
        similarity.fill(IMPOSSIBLE)
        similarity[rows, columns] = worth
        return similarity

    def _reinitialise(
        self, table: TrackTable, tracks: Indices, measurement: NDArray[np.float64]
    ) -> None:
        """Put tracks at their detections, with the velocity that the filter has come to."""
        table.state[kalman.POSITION][:, tracks] = measurement
        table.state[kalman.POSITION_VAR][:, tracks] = self._measurement_var(measurement)
        table.state[kalman.CROSS_COV][:, tracks] = 0.0

    def _correct_carried(
        self,
        table: TrackTable,
        tracks: Indices,
        expected: NDArray[np.float64],
        measurement: NDArray[np.float64],
    ) -> None:
        """Correct the carried boxes of `tracks`, whose filters are corrected already.

        Where the picture carried a box to, a detection moves it by what each is worth. One that
        was led astray begins anew at the filter.

        Args:
            table: written to.
            tracks: (k,) which of the n.
            expected: (4, n) the filters' boxes before.
            measurement: (4, k) the detections.
        """
        memory = table.memory
        measured_var = self._measurement_var(measurement)
        offset = memory[OFFSET].take(tracks, 1)
        if not np.count_nonzero(offset):
            memory[CARRIED_VAR, tracks] = measured_var
            return
        carried_var = memory[CARRIED_VAR].take(tracks)
        total_var = carried_var + measured_var
        gain = carried_var / total_var
        centre = expected[:2].take(tracks, 1) + offset
        innovation = measurement[:2] - centre
        fits = (innovation * innovation < _MAX_INNOVATION_SQ * total_var).all(0)
        fits &= offset.any(0)
        centre += gain * innovation
        centre -= table.state[kalman.POSITION, :2].take(tracks, 1)
        memory[OFFSET, tracks] = np.where(fits, centre, 0.0)
        memory[CARRIED_VAR, tracks] = np.where(fits, gain * measured_var, measured_var)

    def _shown(self, table: TrackTable, stamp_ns: int) -> Shown:
        parameters, info = self._parameters, table.info
        shown: NDArray[np.bool_] = info[MISSES] == 0
        boxes = self._boxes(table)
        if np.count_nonzero(shown) < len(table):
            missed = ~shown
            hidden = np.zeros(len(table), bool)
            if parameters.coast_hidden_s != parameters.coast_s:
                overlap = intersection_over_union(boxes[missed], boxes[shown])
                hidden[missed] = (overlap > 0.1).any(1)
            coast_s = np.where(hidden, parameters.coast_hidden_s, parameters.coast_s)
            shown |= stamp_ns - info[FIRST_MISS_NS] <= coast_s * 1e9
        picture = self._colours.get(stamp_ns)
        if picture is not None:
            away = info[LAST_NS] < stamp_ns - int(parameters.gone_after_s * 1e9)
            away |= info[MISSES] > 0
            away &= table.look.any(1)
            if np.count_nonzero(away):
                self._look_for(table, away, picture, shown, boxes)
        return Shown(shown, boxes)

    def _look_for(
        self,
        table: TrackTable,
        away: NDArray[np.bool_],
        picture: tuple[NDArray[np.uint8], float],
        shown: NDArray[np.bool_],
        boxes: NDArray[np.float64],
    ) -> None:
        """See in the picture which of the tracks `away` are still there: where it carried them, or
        else where the filter has them.

        Args:
            table: n tracks.
            away: (n,) those to look for.
            picture: small image and its scale.
            shown: (n,) which tracks are put out; written to.
            boxes: (n, 4) where; written to.
        """
        parameters = self._parameters
        established = away & (table.info[HITS] > 3)
        unlike = self._unlike(table, away, picture, boxes)
        found = established & (unlike < parameters.still_unlike)
        shown |= found
        shown &= ~(unlike > parameters.gone_unlike)
        elsewhere = established & ~found
        if np.count_nonzero(elsewhere):
            expected = boxes.copy()
            expected[elsewhere] = table.boxes_xyxy[elsewhere]
            unlike = self._unlike(table, elsewhere, picture, expected)
            found = unlike < parameters.still_unlike
            boxes[found] = expected[found]
            shown |= found

    @staticmethod
    def _unlike(
        table: TrackTable,
        wanted: NDArray[np.bool_],
        picture: tuple[NDArray[np.uint8], float],
        boxes: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """How unlike the tracks `wanted` what is seen in their boxes is: (n,), NaN: nothing is."""
        looks, seen = appearance.looks_of(*picture, boxes, wanted)
        unlike = np.full(len(table), np.nan)
        unlike[wanted] = np.where(seen > 0.0, 1.0 - (looks * table.look[wanted]).sum(1), np.nan)
        return unlike

    def _initial_memory(self, observation: Observation, born: Indices) -> NDArray[np.float64]:
        memory = np.zeros((self._memory_rows, len(born)))
        height = observation.measurement[3, born]
        memory[CARRIED_VAR] = self._measurement_var(observation.measurement[:, born])
        memory[OWN_VELOCITY_VAR] = (self._parameters.initial_velocity_std * height) ** 2
        return memory

    def _initial_look(self, observation: Observation, born: Indices) -> NDArray[np.float32]:
        looks = self._looks_of(observation)
        if looks is None:
            return np.zeros((len(born), self._look_size), np.float32)
        return looks[0][born]
