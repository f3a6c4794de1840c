"""Score a tracker against ground truth, with a detector that speaks seldom and late.

    python model_tools/evaluate_tracking.py --video street.mp4 --model yolov8n.onnx --gt gt.txt \\
        --tracker hybrid --detect-every 5 --latency-frames 3 --json scores.json
    python model_tools/evaluate_tracking.py --mot-root MOT15/train --tracker bytetrack

With --video the model finds the objects and the tracker sees the pictures; with --mot-root each
sequence brings det/det.txt, gt/gt.txt and seqinfo.ini (MOTChallenge), and there are no pictures.
Ground truth is in MOTChallenge's text format; frame 1 is the first frame of the video.

With --detect-every N the detector sees frames 1, N+1, 2N+1 ..., and with --latency-frames L its
result for frame k reaches the tracker just before frame k+L. What is scored for a frame is what
the tracker said when that frame was stepped; nothing is corrected afterwards. With --schedule
adaptive the detector sees the frames that AdaptiveSchedule asks for. As in the running nodes that
is known once the frame was stepped, so that its detections come a frame later at the soonest;
compare it with --latency-frames 1 or more. "frames_per_detection" is what to compare it by.

    python model_tools/evaluate_tracking.py --video street.mp4 --model yolov8n.onnx --gt gt.txt \
        --live 10 --detect-every 2

plays the video in real time, 10 frames a second, into the running nodes, and scores for each frame
what had come before the next was due.

With --sweep every --sweep-n and the adaptive schedule, --sweep-latency and --sweep-trackers are
run, accuracy is drawn against load (--plot), and a setting is recommended. It works on a video
without --gt too: then what the first tracker says with a detection on every frame is taken for the
truth.

Scores are TrackEval's, in percent, over all sequences together and for each. Detections of a video
are kept in a cache, so that only the first run of a model on a video is slow.
"""

from __future__ import annotations

import argparse
import configparser
import hashlib
import itertools
import json
import os
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from command_line import command, write_whole
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track as progress

from edge_perception.detection import Detector
from edge_perception.media import open_source
from edge_perception.tracking import (
    TRACKERS,
    AdaptiveParameters,
    AdaptiveSchedule,
    Tracker,
    create_tracker,
)
from edge_perception.tracking.base import changed
from edge_perception.types import Detections, EdgePerceptionError, Tracks

Item = TypeVar('Item')

# Trackers use weak detections too, to go on through occlusions.
SCORE_THRESHOLD = 0.1
# MOT16 and later mark each row of ground truth with a class of this many; MOT15 has none.
_MOT_CLASS_COUNT = 13

_HOTA_MEANS = ('HOTA', 'DetA', 'AssA')


class EvaluationError(EdgePerceptionError):
    """What is to be scored cannot be read or does not fit together."""


@dataclass(frozen=True)
class TrackingSequence:
    """Something to track.

    Attributes:
        name: as it appears in the scores.
        stamps_ns: of every frame.
        detections: of every frame.
        gt_path: ground truth in MOTChallenge's format; None where there is none yet.
        detect_ms: what a detection costs; 0 where it was never measured.
        images: opens the pictures anew, (h, w, 3) uint8 BGR each; None where there are none.
    """

    name: str
    stamps_ns: Sequence[int]
    detections: Sequence[Detections]
    gt_path: Path | None
    images: Callable[[], Iterator[NDArray[np.uint8]]] | None = None
    detect_ms: float = 0.0


@dataclass(frozen=True)
class TrackingRun:
    """What a tracker said of a sequence.

    Attributes:
        tracks: of every frame, as put out when it was stepped.
        step_us: time of every frame in microseconds: corrections and step.
        detected: indices of the frames that the detector was given.
        reasons: how often the adaptive schedule asked for a detection, by its reason.
    """

    tracks: list[Tracks]
    step_us: NDArray[np.float64]
    detected: list[int]
    reasons: Counter[str]

    @property
    def frames_per_detection(self) -> float:
        """Mean number of frames that share one detection: 1 is a detection on every frame."""
        return len(self.tracks) / max(len(self.detected), 1)


def track(
    sequence: TrackingSequence,
    tracker: Tracker[Any],
    *,
    detect_every: int = 1,
    adaptive: AdaptiveParameters | None = None,
    latency_frames: int = 0,
    use_images: bool = True,
) -> TrackingRun:
    """Run a tracker over a sequence.

    Args:
        sequence: what to track.
        tracker: a fresh one.
        detect_every: the detector sees every n-th frame, from the first.
        adaptive: the detector sees the frames that a schedule with these parameters asks for;
            None for every n-th.
        latency_frames: how many frames later its result arrives; what the schedule asks for comes
            before the next frame at the soonest.
        use_images: let the tracker see the pictures, where there are any.
    """
    stamps_ns = sequence.stamps_ns
    images = sequence.images() if sequence.images and use_images else None
    schedule = AdaptiveSchedule(adaptive) if adaptive else None
    tracks: list[Tracks] = []
    step_us = np.empty(len(stamps_ns))
    detected: list[int] = []
    under_way: deque[int] = deque()
    reasons: Counter[str] = Counter()
    for index, stamp_ns in enumerate(stamps_ns):
        image = next(images) if images else None
        if schedule is None and index % detect_every == 0:
            detected.append(index)
            under_way.append(index)
        start = time.perf_counter()
        if under_way and index - under_way[0] >= latency_frames:
            arriving = under_way.popleft()
            if schedule:
                took_ns = stamps_ns[arriving + latency_frames] - stamps_ns[arriving]
                schedule.detection_took(took_ns * 1e-9)
            tracker.correct(stamps_ns[arriving], sequence.detections[arriving])
        tracks.append(tracker.step(stamp_ns, image))
        if schedule and schedule.wants(stamp_ns, tracker.quality):
            detected.append(index)
            under_way.append(index)
            reasons[schedule.reason] += 1
        step_us[index] = (time.perf_counter() - start) * 1e6
    return TrackingRun(tracks, step_us, detected, reasons)


def write_mot(path: Path, tracks: Sequence[Tracks]) -> None:
    """Write tracks in MOTChallenge's format: frame, id, left, top, width, height, score."""
    with path.open('w') as file:
        for number, frame in enumerate(tracks, start=1):
            for box, track_id, score in zip(frame.xyxy, frame.track_id, frame.score, strict=True):
                left, top, right, bottom = box
                file.write(
                    f'{number},{track_id},{left:.3f},{top:.3f},{right - left:.3f},'
                    f'{bottom - top:.3f},{score:.4f},-1,-1,-1\n'
                )


def score(runs: Mapping[str, tuple[Path, Sequence[Tracks]]]) -> dict[str, Any]:
    """Score tracks by TrackEval's MotChallenge2DBox with its default preprocessing.

    Args:
        runs: ground truth file and tracks of every frame, by name of the sequence.

    Returns:
        HOTA, DetA, AssA, MOTA, IDF1 in percent, IDSW, FP, FN over all sequences, and the same of
        each in `sequences`.

    Raises:
        EvaluationError: TrackEval refuses the ground truth.
    """
    # Imported here: it is needed for scores only, and takes a second.
    import trackeval

    metrics = (
        trackeval.metrics.HOTA(),
        trackeval.metrics.CLEAR({'PRINT_CONFIG': False}),
        trackeval.metrics.Identity({'PRINT_CONFIG': False}),
    )
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / 'run' / 'data').mkdir(parents=True)
        for name, (gt_path, tracks) in runs.items():
            write_mot(root / 'run' / 'data' / f'{name}.txt', tracks)
            gt_folder = root / 'gt' / name / 'gt'
            gt_folder.mkdir(parents=True)
            _write_gt(gt_path, gt_folder / 'gt.txt', len(tracks))
            try:
                dataset = trackeval.datasets.MotChallenge2DBox(
                    {
                        'GT_FOLDER': str(root / 'gt'),
                        'TRACKERS_FOLDER': str(root),
                        'TRACKERS_TO_EVAL': ['run'],
                        'BENCHMARK': 'MOT17' if _has_classes(gt_path) else 'MOT15',
                        'SEQ_INFO': {name: len(tracks)},
                        'SKIP_SPLIT_FOL': True,
                        'PRINT_CONFIG': False,
                    }
                )
                raw = dataset.get_raw_seq_data('run', name)
                data = dataset.get_preprocessed_seq_data(raw, 'pedestrian')
            except trackeval.utils.TrackEvalException as error:
                raise EvaluationError(f'{gt_path}: {error}') from error
            results[name] = {metric.get_name(): metric.eval_sequence(data) for metric in metrics}
    together = {
        metric.get_name(): metric.combine_sequences(
            {name: result[metric.get_name()] for name, result in results.items()}
        )
        for metric in metrics
    }
    return {
        **_summary(together),
        'sequences': {name: _summary(result) for name, result in results.items()},
    }


def _summary(result: Mapping[str, Any]) -> dict[str, Any]:
    hota, clear, identity = result['HOTA'], result['CLEAR'], result['Identity']
    return {
        **{name: round(100 * float(np.mean(hota[name])), 3) for name in _HOTA_MEANS},
        'MOTA': round(100 * float(clear['MOTA']), 3),
        'IDF1': round(100 * float(identity['IDF1']), 3),
        'IDSW': int(clear['IDSW']),
        'FP': int(clear['CLR_FP']),
        'FN': int(clear['CLR_FN']),
    }


def _read_rows(path: Path) -> NDArray[np.float64]:
    """Rows of a MOTChallenge text file: (n, columns)."""
    try:
        rows = np.loadtxt(path, delimiter=',', ndmin=2)
    except (OSError, ValueError) as error:
        raise EvaluationError(f'cannot read {path}: {error}') from error
    if rows.size and rows.shape[1] < 7:
        raise EvaluationError(
            f'{path} is not in MOTChallenge format: 7 or more columns expected, '
            f'it has {rows.shape[1]}'
        )
    return rows


def _has_classes(gt_path: Path) -> bool:
    """Whether the 8th of 9 columns is a class, as from MOT16 on."""
    rows = _read_rows(gt_path)
    if rows.shape[1] != 9:
        return False
    return bool(np.isin(rows[:, 7], np.arange(1, _MOT_CLASS_COUNT + 1)).all())


def _write_gt(source: Path, target: Path, frame_count: int) -> None:
    """Copy the rows of the first `frame_count` frames; TrackEval refuses others."""
    kept = [
        line
        for line in source.read_text().splitlines()
        if line.strip() and 1 <= float(line.split(',')[0]) <= frame_count
    ]
    target.write_text('\n'.join(kept) + '\n')


def open_mot_sequence(folder: Path) -> TrackingSequence:
    """Read one sequence of a MOTChallenge folder: det/det.txt, gt/gt.txt, seqinfo.ini.

    Raises:
        EvaluationError: one of them is missing or malformed.
    """
    info = configparser.ConfigParser()
    info_path = folder / 'seqinfo.ini'
    try:
        if not info.read(info_path):
            raise EvaluationError(f'{info_path} is missing')
        rate_hz = info.getfloat('Sequence', 'frameRate')
        length = info.getint('Sequence', 'seqLength')
    except (configparser.Error, ValueError) as error:
        raise EvaluationError(f'{info_path}: {error}') from error
    if rate_hz <= 0:
        raise EvaluationError(f'{info_path}: frameRate must be above 0, is {rate_hz}')
    gt_path = folder / 'gt' / 'gt.txt'
    if not gt_path.is_file():
        raise EvaluationError(f'{gt_path} is missing')
    rows = _read_rows(folder / 'det' / 'det.txt')
    frame_index = rows[:, 0].astype(int) - 1
    boxes = rows[:, 2:6].astype(np.float32)
    boxes[:, 2:] += boxes[:, :2]
    scores = _as_probability(rows[:, 6]).astype(np.float32)
    detections = []
    for index in range(length):
        chosen = frame_index == index
        count = int(chosen.sum())
        detections.append(Detections(boxes[chosen], scores[chosen], np.zeros(count, np.int32)))
    stamps_ns = [round(index / rate_hz * 1e9) for index in range(length)]
    return TrackingSequence(folder.name, stamps_ns, detections, gt_path)


def _as_probability(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores in [0, 1]; those of detectors with another range (DPM) are spread over it."""
    if not len(scores) or (scores.min() >= 0.0 and scores.max() <= 1.0):
        return scores
    low, high = np.percentile(scores, (1, 99))
    return np.clip((scores - low) / max(high - low, 1e-9), 0.0, 1.0)


def open_mot_root(root: Path, names: Sequence[str] | None = None) -> list[TrackingSequence]:
    """Read the sequences of a MOTChallenge folder, all or those of `names`."""
    found = {path.parent.name for path in root.glob('*/seqinfo.ini')}
    missing = sorted(set(names or ()) - found)
    if missing or not found:
        raise EvaluationError(
            f'{root} has no sequence {", ".join(missing) or "at all (SEQUENCE/seqinfo.ini)"}'
        )
    return [open_mot_sequence(root / name) for name in sorted(names or found)]


def open_video(
    uri: str,
    gt_path: Path | None,
    *,
    model: str,
    backend: str = 'auto',
    image_size: int | None = None,
    classes: Sequence[str] | None = ('person',),
    cache: Path | None = None,
) -> TrackingSequence:
    """Detect on every frame of a video, or take the detections from the cache.

    Args:
        uri: anything that `open_source` reads and that ends.
        gt_path: ground truth in MOTChallenge's format; None where there is none yet.
        model: model file of the detector.
        backend: of the detector.
        image_size: of the detector; None is the model's own.
        classes: to track; MOTChallenge knows persons only.
        cache: folder of the detections; None is the user's cache folder.
    """
    if gt_path is not None and not gt_path.is_file():
        raise EvaluationError(f'{gt_path} is missing')
    settings = {
        'version': 2,
        'source': _fingerprint(uri),
        'model': _fingerprint(model),
        'backend': backend,
        'image_size': image_size,
        'classes': list(classes or ()),
        'score_threshold': SCORE_THRESHOLD,
    }
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:24]
    path = (cache or _user_cache()) / f'{Path(uri).stem}-{key}.npz'
    if not path.is_file():
        _save_detections(path, *_detect_all(uri, model, backend, image_size, classes))
    stamps_ns, detections, detect_ms = _load_detections(path)

    def images() -> Iterator[NDArray[np.uint8]]:
        with open_source(uri) as source:
            for frame in source:
                yield frame.image

    name = Path(uri).stem
    return TrackingSequence(name, stamps_ns, detections, gt_path, images, detect_ms)


def _detect_all(
    uri: str,
    model: str,
    backend: str,
    image_size: int | None,
    classes: Sequence[str] | None,
) -> tuple[list[int], list[Detections], float]:
    stamps_ns, detections, durations_ms = [], [], []
    with (
        Detector(
            backend,
            model_path=model,
            score_threshold=SCORE_THRESHOLD,
            image_size=image_size,
            classes=classes,
        ) as detector,
        open_source(uri) as source,
    ):
        for frame in _progress(source, 'detecting', source.frame_count):
            stamps_ns.append(frame.stamp_ns)
            detections.append(detector(frame))
            durations_ms.append(sum(detector.timings.values()))
    if not stamps_ns:
        raise EvaluationError(f'{uri} has no frames')
    return stamps_ns, detections, float(np.median(durations_ms))


def _progress(items: Iterable[Item], label: str, total: int | None) -> Iterable[Item]:
    """Pass `items` on behind a bar on the terminal, if standard error is one."""
    console = Console(stderr=True)
    return progress(items, label, total=total, console=console, disable=not console.is_terminal)


def _fingerprint(path: str) -> str:
    """Digest of a file's content; of a folder's, its names and sizes; else the text itself."""
    digest = hashlib.sha256()
    if os.path.isfile(path):
        with open(path, 'rb') as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    elif os.path.isdir(path):
        for entry in sorted(Path(path).rglob('*')):
            digest.update(f'{entry}:{entry.stat().st_size}\n'.encode())
    else:
        digest.update(path.encode())
    return digest.hexdigest()


def _user_cache() -> Path:
    base = os.environ.get('XDG_CACHE_HOME') or str(Path.home() / '.cache')
    return Path(base) / 'edge_perception' / 'detections'


def _save_detections(
    path: Path, stamps_ns: Sequence[int], detections: Sequence[Detections], detect_ms: float
) -> None:
    """Keep the detections of a video: whole, or not at all."""
    every = Detections.concatenate(detections)
    write_whole(
        path,
        lambda beside: np.savez_compressed(
            beside,
            stamps_ns=np.array(stamps_ns, np.int64),
            counts=np.array([len(frame) for frame in detections]),
            xyxy=every.xyxy,
            score=every.score,
            class_id=every.class_id,
            detect_ms=detect_ms,
        ),
    )


def _load_detections(path: Path) -> tuple[list[int], list[Detections], float]:
    with np.load(path) as data:
        every = Detections(data['xyxy'], data['score'], data['class_id'])
        ends = np.cumsum(data['counts'])
        starts = ends - data['counts']
        stamps_ns = data['stamps_ns'].tolist()
        detect_ms = float(data['detect_ms'])
    detections = [every[int(start) : int(end)] for start, end in zip(starts, ends, strict=True)]
    return stamps_ns, detections, detect_ms


def evaluate(
    sequences: Sequence[TrackingSequence],
    create: Callable[[], Tracker[Any]],
    *,
    detect_every: int = 1,
    adaptive: AdaptiveParameters | None = None,
    latency_frames: int = 0,
    use_images: bool = True,
) -> dict[str, Any]:
    """Track and score sequences, each with a tracker of its own.

    Returns:
        What `score` returns, with `us_per_step` and `frames_per_detection` beside each set of
        scores, and `asked_because`: how often the adaptive schedule asked, by its reason.
    """
    runs = {
        sequence.name: track(
            sequence,
            create(),
            detect_every=detect_every,
            adaptive=adaptive,
            latency_frames=latency_frames,
            use_images=use_images,
        )
        for sequence in _progress(sequences, 'tracking', len(sequences))
    }
    report = score(
        {s.name: (s.gt_path, runs[s.name].tracks) for s in sequences if s.gt_path is not None}
    )
    every_us = np.concatenate([run.step_us for run in runs.values()])
    report['us_per_step'] = round(float(every_us.mean()), 1)
    detected_count = sum(len(run.detected) for run in runs.values())
    report['frames_per_detection'] = round(len(every_us) / max(detected_count, 1), 2)
    reasons: Counter[str] = sum((run.reasons for run in runs.values()), Counter())
    report['asked_because'] = dict(reasons.most_common())
    for name, run in runs.items():
        scores = report['sequences'][name]
        scores['us_per_step'] = round(float(run.step_us.mean()), 1)
        scores['frames_per_detection'] = round(run.frames_per_detection, 2)
    return report


def evaluate_live(
    video: str,
    gt_path: Path,
    *,
    rate_hz: float,
    detect_every: int,
    parameters: Sequence[str],
    domain_id: int | None = None,
) -> dict[str, Any]:
    """Play a video in real time into the running graph and score what it says in time.

    Streaming: a frame is scored with the newest tracks message that had come before the next
    frame was due, whichever frame that message is of.

    Args:
        video: what to play, at `rate_hz`, whatever its own rate.
        gt_path: ground truth in MOTChallenge's format.
        rate_hz: frames a second.
        detect_every: the detector takes every n-th frame.
        parameters: `NODE:NAME:=VALUE` for the nodes.
        domain_id: ROS domain.

    Returns:
        What `score` returns, with `frames`, `answered` (frames with a tracks message of their
        own), `answered_in_time` (before the next frame was due) and `late_ms` (latency of those
        answered later, by the number of the frame), and the latency from the stamp of a frame to
        the arrival of its message.
    """
    # Imported here: only this needs ROS 2.
    from live_graph import run_live

    from edge_perception.ros.messages import ClassNames, message_to_tracks

    run = run_live(
        video,
        rate_hz=rate_hz,
        parameters=[f'detector:detect_every_n:={detect_every}', *parameters],
        domain_id=domain_id,
    )
    names = ClassNames()
    arrivals = [
        (arrived_ns, message_to_tracks(message, names)) for arrived_ns, message in run.tracks
    ]
    stamps_ns = run.stamps_ns
    due_ns = [*stamps_ns[1:], stamps_ns[-1] + round(1e9 / rate_hz)]
    position, newest = 0, None
    tracks: list[Tracks] = []
    for due in due_ns:
        while position < len(arrivals) and arrivals[position][0] < due:
            newest = arrivals[position][1]
            position += 1
        is_of_video = newest is not None and newest.stamp_ns >= stamps_ns[0]
        tracks.append(newest.value if newest is not None and is_of_video else Tracks.empty())
    arrived_ns_of = {stamped.stamp_ns: arrived_ns for arrived_ns, stamped in arrivals}
    latency_ms = [
        (arrived_ns_of[stamp] - stamp) / 1e6 for stamp in stamps_ns if stamp in arrived_ns_of
    ]
    late_ms = {
        number: round((arrived_ns_of[stamp] - stamp) / 1e6, 1)
        for number, (stamp, due) in enumerate(zip(stamps_ns, due_ns, strict=True), start=1)
        if arrived_ns_of.get(stamp, 0) >= due
    }
    name = Path(video).stem
    report = score({name: (gt_path, tracks)})
    us_per_step = 1e3 * float(run.diagnostics['tracker'].get('track_ms.avg', 'nan'))
    report['sequences'][name]['us_per_step'] = us_per_step
    return {
        **report,
        'frames': len(stamps_ns),
        'answered': len(latency_ms),
        'answered_in_time': len(latency_ms) - len(late_ms),
        'late_ms': late_ms,
        'latency_p50_ms': float(np.percentile(latency_ms, 50)) if latency_ms else None,
        'latency_p95_ms': float(np.percentile(latency_ms, 95)) if latency_ms else None,
        'us_per_step': us_per_step,
        'diagnostics': run.diagnostics,
    }


def sweep(
    sequences: Sequence[TrackingSequence],
    *,
    trackers: Sequence[str],
    detect_every: Sequence[int],
    latency_frames: Sequence[int],
    adaptive: AdaptiveParameters | None = None,
    use_images: bool = True,
) -> list[dict[str, Any]]:
    """Score every combination of tracker, latency and schedule.

    Args:
        sequences: with ground truth.
        trackers: names.
        detect_every: each a schedule.
        latency_frames: each for all schedules.
        adaptive: one more schedule; None for none.
        use_images: let the tracker see the pictures, where there are any.

    Returns:
        What `evaluate` returns of each, without `sequences`, and with `tracker`, `schedule`
        (every_n or adaptive), `detect_every` (None where adaptive), `latency_frames` and
        `load_percent`: the time that detections and steps take, in percent of the time that
        passes.
    """
    schedules = [*detect_every, *([None] if adaptive else [])]
    combinations = list(itertools.product(trackers, latency_frames, schedules))
    rows = []
    for tracker, latency, every_n in _progress(combinations, 'sweeping', len(combinations)):
        report = evaluate(
            sequences,
            lambda name=tracker: create_tracker(name),  # type: ignore[misc]
            detect_every=every_n or 1,
            adaptive=None if every_n else adaptive,
            latency_frames=latency,
            use_images=use_images,
        )
        scores_of = report.pop('sequences')
        busy_ms = sum(
            len(s.stamps_ns)
            * (
                s.detect_ms / scores_of[s.name]['frames_per_detection']
                + report['us_per_step'] / 1e3
            )
            for s in sequences
        )
        passed_ms = sum((s.stamps_ns[-1] - s.stamps_ns[0]) / 1e6 for s in sequences)
        rows.append(
            {
                'tracker': tracker,
                'schedule': 'every_n' if every_n else 'adaptive',
                'detect_every': every_n,
                'latency_frames': latency,
                **report,
                'load_percent': round(100 * busy_ms / max(passed_ms, 1e-9), 1),
            }
        )
    return rows


def with_reference(
    sequence: TrackingSequence, tracker: str, folder: Path, *, use_images: bool = True
) -> TrackingSequence:
    """A sequence without ground truth, with a tracker's word on every frame for it."""
    path = folder / f'{sequence.name}.txt'
    write_mot(path, track(sequence, create_tracker(tracker), use_images=use_images).tracks)
    rows = _read_rows(path) if path.stat().st_size else np.empty((0, 10))
    rows[:, 6] = 1.0
    np.savetxt(path, rows, fmt='%g', delimiter=',')
    return replace(sequence, gt_path=path)


def recommend(rows: Sequence[Mapping[str, Any]]) -> str:
    """What to set, in words: for each latency the least load that keeps 95 % of the best HOTA."""
    lines = []
    for latency in sorted({row['latency_frames'] for row in rows}):
        same = [row for row in rows if row['latency_frames'] == latency]
        best = max(same, key=lambda row: row['HOTA'])
        good = [row for row in same if row['HOTA'] >= 0.95 * best['HOTA']]
        chosen = min(good, key=lambda row: (row['load_percent'], -row['HOTA']))
        setting = (
            f'detect_every_n {chosen["detect_every"]}'
            if chosen['detect_every']
            else 'schedule adaptive (of tracker and detector)'
        )
        lines.append(
            f'Detections {latency} frames late: tracker {chosen["tracker"]}, {setting}: '
            f'HOTA {chosen["HOTA"]:.1f} at {chosen["load_percent"]:.0f} % load (best is '
            f'{best["HOTA"]:.1f} with {best["tracker"]}, {_schedule_label(best)}, at '
            f'{best["load_percent"]:.0f} %).'
        )
    return '\n'.join(lines)


def _schedule_label(row: Mapping[str, Any]) -> str:
    """The schedule of a row of a sweep, with the N that an adaptive one came to."""
    if row['detect_every']:
        return f'N = {row["detect_every"]}'
    return f'adaptive (N = {row["frames_per_detection"]:.1f})'


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw HOTA against load: a line a tracker and latency, N beside each point, a star for the
    adaptive schedule."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for tracker, latency in sorted({(row['tracker'], row['latency_frames']) for row in rows}):
        line = [
            row for row in rows if (row['tracker'], row['latency_frames']) == (tracker, latency)
        ]
        fixed = [row for row in line if row['detect_every']]
        (drawn,) = axes.plot(
            [row['load_percent'] for row in fixed],
            [row['HOTA'] for row in fixed],
            marker='o',
            label=f'{tracker}, {latency} frames late',
        )
        for row in line:
            point = (row['load_percent'], row['HOTA'])
            if not row['detect_every']:
                axes.plot(*point, marker='*', markersize=12, color=drawn.get_color())
            axes.annotate(_schedule_label(row), point, fontsize=7)
    axes.set_xlabel('load: time of detections and steps / time, %')
    axes.set_ylabel('HOTA, %')
    axes.grid(alpha=0.3)
    axes.legend()
    try:
        write_whole(path, lambda beside: figure.savefig(beside, dpi=120))
    finally:
        pyplot.close(figure)


def write_json(path: Path, report: Mapping[str, Any]) -> None:
    """Write a report: whole, or not at all."""
    write_whole(path, lambda beside: beside.write_text(json.dumps(report, indent=2) + '\n'))


def sweep_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The sweep for people: a line a combination."""
    columns = (
        'tracker',
        'schedule',
        'frames_per_detection',
        'latency_frames',
        'HOTA',
        'AssA',
        'IDF1',
        'IDSW',
        'load_percent',
    )
    return _aligned([columns, *([_cell(row[column]) for column in columns] for row in rows)])


def table(report: Mapping[str, Any]) -> str:
    """The scores for people: a line a sequence, the last one for all."""
    columns = ['HOTA', 'DetA', 'AssA', 'MOTA', 'IDF1', 'IDSW', 'FP', 'FN', 'us_per_step']
    # Of the live graph it is not known.
    if 'frames_per_detection' in report:
        columns.append('frames_per_detection')
    lines = [('sequence', *columns)]
    rows = dict(report['sequences'])
    if len(rows) != 1:
        rows['together'] = report
    lines += [(name, *(_cell(row[column]) for column in columns)) for name, row in rows.items()]
    return _aligned(lines)


def _cell(value: Any) -> str:
    return f'{value:.1f}' if isinstance(value, float) else str(value)


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    """Columns of text, the first flush left, the others flush right."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return '\n'.join(
        '  '.join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def _parse_parameter(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition('=')
    if not separator:
        raise argparse.ArgumentTypeError(f'{text!r} is not NAME=VALUE')
    try:
        return name, json.loads(value.lower())
    except json.JSONDecodeError:
        return name, value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'must be at least 1, is {value}')
    return value


def _rate(text: str) -> float:
    value = float(text)
    if not 0.0 < value <= 1000.0:
        raise argparse.ArgumentTypeError('must be above 0, in frames a second')
    return value


def _not_negative(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f'must not be negative, is {value}')
    return value


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument('--video', help='video file, bag or folder of images; needs --model, --gt')
    what.add_argument('--mot-root', type=Path, help='folder of MOTChallenge sequences')
    parser.add_argument('--model', help='model file of the detector')
    parser.add_argument('--gt', type=Path, help='ground truth of the video')
    parser.add_argument('--sequences', nargs='+', metavar='NAME', help='only these of --mot-root')
    parser.add_argument('--backend', default='auto', help='backend of the detector')
    parser.add_argument('--imgsz', type=_positive, help="the detector's input size in pixels")
    parser.add_argument(
        '--classes', nargs='*', default=['person'], help='classes to track (default: person)'
    )
    parser.add_argument('--cache', type=Path, help='folder for the detections of videos')
    parser.add_argument('--tracker', default='hybrid', choices=tuple(TRACKERS))
    parser.add_argument(
        '--set',
        action='append',
        default=[],
        type=_parse_parameter,
        metavar='NAME=VALUE',
        help='a parameter of the tracker; may be given several times',
    )
    parser.add_argument(
        '--schedule',
        default='every_n',
        choices=('every_n', 'adaptive'),
        help='detect on every --detect-every-th frame, or on those that AdaptiveSchedule asks for',
    )
    parser.add_argument(
        '--schedule-set',
        action='append',
        default=[],
        type=_parse_parameter,
        metavar='NAME=VALUE',
        help='a parameter of the adaptive schedule; may be given several times',
    )
    parser.add_argument('--detect-every', type=_positive, default=1, metavar='N')
    parser.add_argument('--latency-frames', type=_not_negative, default=0, metavar='L')
    parser.add_argument(
        '--no-images', action='store_true', help='do not let the tracker see the pictures'
    )
    parser.add_argument(
        '--live',
        type=_rate,
        metavar='FPS',
        help='play the video in real time into the running graph and score what it says in time',
    )
    parser.add_argument(
        '--parameter',
        action='append',
        default=[],
        metavar='NODE:NAME:=VALUE',
        help='a ROS parameter of the graph of --live; may be given several times',
    )
    parser.add_argument('--json', type=Path, metavar='OUT', help='write the scores here')
    parser.add_argument('--sweep', action='store_true', help='run many settings and recommend one')
    parser.add_argument('--sweep-n', nargs='+', type=_positive, default=[1, 2, 5, 10], metavar='N')
    parser.add_argument(
        '--sweep-latency', nargs='+', type=_not_negative, default=[0, 3], metavar='L'
    )
    parser.add_argument(
        '--sweep-trackers',
        nargs='+',
        choices=tuple(TRACKERS),
        default=['hybrid', 'bytetrack'],
        metavar='TRACKER',
    )
    parser.add_argument('--plot', type=Path, metavar='PNG', help='where to draw the sweep')
    options = parser.parse_args(arguments)
    if options.video and not options.model:
        parser.error('--video needs --model')
    if options.video and not options.gt and not options.sweep:
        parser.error('--video needs --gt, or --sweep, which can do without')
    if options.live and not options.video:
        parser.error('--live needs --video')
    if options.live and (options.set or options.schedule_set or options.latency_frames):
        parser.error('--live takes --parameter, and the latency that there is')
    if options.schedule == 'adaptive' and options.detect_every != 1:
        parser.error('--detect-every is for --schedule every_n')
    if options.schedule_set and options.schedule != 'adaptive' and not options.sweep:
        parser.error('--schedule-set needs --schedule adaptive, or --sweep')
    return options


@command('evaluate_tracking')
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is returned."""
    options = parse_arguments(arguments)
    if options.live:
        return _main_live(options)
    adaptive = changed(AdaptiveParameters(), **dict(options.schedule_set))
    if options.video:
        sequences = [
            open_video(
                options.video,
                options.gt,
                model=options.model,
                backend=options.backend,
                image_size=options.imgsz,
                classes=options.classes,
                cache=options.cache,
            )
        ]
    else:
        sequences = open_mot_root(options.mot_root, options.sequences)
    if options.sweep:
        return _main_sweep(options, sequences, adaptive)
    is_adaptive = options.schedule == 'adaptive'
    report = evaluate(
        sequences,
        lambda: create_tracker(options.tracker, **dict(options.set)),
        detect_every=options.detect_every,
        adaptive=adaptive if is_adaptive else None,
        latency_frames=options.latency_frames,
        use_images=not options.no_images,
    )
    report['settings'] = {
        'tracker': options.tracker,
        'parameters': dict(options.set),
        'schedule': options.schedule,
        'schedule_parameters': asdict(adaptive) if is_adaptive else None,
        'detect_every': None if is_adaptive else options.detect_every,
        'latency_frames': options.latency_frames,
        'images': bool(options.video) and not options.no_images,
    }
    if options.json:
        write_json(options.json, report)
    print(table(report))
    if report['asked_because']:
        because = ', '.join(f'{reason} {n}' for reason, n in report['asked_because'].items())
        print(f'asked for a detection because of: {because}')
    return 0


def _main_live(options: argparse.Namespace) -> int:
    parameters = [f'detector:model_path:={options.model}', f'tracker:tracker:={options.tracker}']
    if options.classes:
        parameters.append(f'detector:classes:={",".join(options.classes)}')
    if options.backend != 'auto':
        parameters.append(f'detector:backend:={options.backend}')
    if options.imgsz:
        parameters.append(f'detector:image_size:={options.imgsz}')
    if options.no_images:
        parameters.append('tracker:use_images:=false')
    if options.schedule == 'adaptive':
        parameters += ['detector:schedule:=adaptive', 'tracker:schedule:=adaptive']
    report = evaluate_live(
        options.video,
        options.gt,
        rate_hz=options.live,
        detect_every=options.detect_every,
        parameters=[*parameters, *options.parameter],
    )
    report['settings'] = {
        'live_fps': options.live,
        'detect_every': options.detect_every,
        'parameters': [*parameters, *options.parameter],
    }
    if options.json:
        write_json(options.json, report)
    print(table(report))
    print(
        f'{report["answered_in_time"]} of {report["frames"]} frames answered before the next was '
        f'due; latency p50 {report["latency_p50_ms"] or 0:.1f} ms, '
        f'p95 {report["latency_p95_ms"] or 0:.1f} ms'
    )
    return 0


def _main_sweep(
    options: argparse.Namespace,
    sequences: Sequence[TrackingSequence],
    adaptive: AdaptiveParameters,
) -> int:
    use_images = not options.no_images
    with tempfile.TemporaryDirectory() as folder:
        with_truth = [
            sequence
            if sequence.gt_path
            else with_reference(
                sequence, options.sweep_trackers[0], Path(folder), use_images=use_images
            )
            for sequence in sequences
        ]
        rows = sweep(
            with_truth,
            trackers=options.sweep_trackers,
            detect_every=options.sweep_n,
            latency_frames=options.sweep_latency,
            adaptive=adaptive,
            use_images=use_images,
        )
    recommendation = recommend(rows)
    if options.json:
        write_json(options.json, {'rows': rows, 'recommendation': recommendation.splitlines()})
    if options.plot:
        plot(rows, options.plot)
    print(f'{sweep_table(rows)}\n\n{recommendation}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
