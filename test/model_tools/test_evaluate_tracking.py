"""model_tools/evaluate_tracking.py: scores, files, the order in which a tracker is driven."""

from __future__ import annotations

import json
from dataclasses import replace

import evaluate_tracking as tool
import numpy as np
import pytest

from edge_perception.tracking import (
    AdaptiveParameters,
    TrackingQuality,
    create_tracker,
)
from edge_perception.types import Detections

pytest.importorskip('trackeval')


def write_sequence(root, name, *, frames=20, missed=(), classes=False, score=0.9):
    """A sequence of two people who stand apart and walk slowly."""
    folder = root / name
    (folder / 'gt').mkdir(parents=True)
    (folder / 'det').mkdir()
    (folder / 'seqinfo.ini').write_text(
        f'[Sequence]\nname={name}\nframeRate=10\nseqLength={frames}\n'
    )
    gt, det = [], []
    for frame in range(1, frames + 1):
        for person in (1, 2):
            box = f'{10 + 2 * frame},{person * 200},40,100'
            tail = '1,1,1.0' if classes else '1,-1,-1,-1'
            gt.append(f'{frame},{person},{box},{tail}')
            if (frame, person) not in missed:
                det.append(f'{frame},-1,{box},{score},-1,-1,-1')
    (folder / 'gt' / 'gt.txt').write_text('\n'.join(gt) + '\n')
    (folder / 'det' / 'det.txt').write_text('\n'.join(det) + '\n')
    return folder


@pytest.mark.parametrize('classes', [False, True], ids=['MOT15', 'MOT17'])
def test_a_perfect_detector_scores_full_marks(tmp_path, classes):
    write_sequence(tmp_path / 'mot', 'street', classes=classes)
    out = tmp_path / 'scores' / 'out.json'
    arguments = ['--mot-root', str(tmp_path / 'mot'), '--tracker', 'iou', '--json', str(out)]
    assert tool.main(arguments) == 0
    report = json.loads(out.read_text())
    for scores in (report, report['sequences']['street']):
        assert {key: scores[key] for key in ('HOTA', 'MOTA', 'IDF1')} == {
            'HOTA': 100.0,
            'MOTA': 100.0,
            'IDF1': 100.0,
        }
        assert (scores['IDSW'], scores['FP'], scores['FN']) == (0, 0, 0)
        assert scores['us_per_step'] > 0
    assert [path.name for path in out.parent.iterdir()] == ['out.json']


def test_misses_and_switches_are_counted(tmp_path):
    folder = write_sequence(tmp_path, 'street', missed={(20, 1), (20, 2)})
    report = tool.evaluate([tool.open_mot_sequence(folder)], lambda: create_tracker('iou'))
    assert (report['FN'], report['FP'], report['IDSW']) == (2, 0, 0)
    assert report['MOTA'] == pytest.approx(100 * 38 / 40)


def test_sequences_count_together_by_their_boxes(tmp_path):
    write_sequence(tmp_path, 'long', frames=30)
    write_sequence(tmp_path, 'short', frames=10, missed={(k, 1) for k in range(1, 11)})
    sequences = tool.open_mot_root(tmp_path)
    report = tool.evaluate(sequences, lambda: create_tracker('iou'))
    assert report['sequences']['long']['MOTA'] == 100.0
    assert report['sequences']['short']['MOTA'] == 50.0
    assert report['MOTA'] == pytest.approx(100 * 70 / 80)


class Recorder:
    """Writes down how a tracker is driven, and lets a real one do the work."""

    def __init__(self):
        self.calls = []
        self._tracker = create_tracker('iou')

    def correct(self, stamp_ns, detections):
        self.calls.append(('correct', stamp_ns))
        self._tracker.correct(stamp_ns, detections)

    def step(self, stamp_ns, image=None):
        self.calls.append(('step', stamp_ns))
        return self._tracker.step(stamp_ns, image)


def test_every_nth_frame_is_detected_and_arrives_late():
    stamps = [0, 1, 2, 3, 4, 5]
    sequence = tool.TrackingSequence('s', stamps, [Detections.empty()] * 6, None)
    recorder = Recorder()
    tool.track(sequence, recorder, detect_every=2, latency_frames=1)
    assert recorder.calls == [
        ('step', 0),
        ('correct', 0),
        ('step', 1),
        ('step', 2),
        ('correct', 2),
        ('step', 3),
        ('step', 4),
        ('correct', 4),
        ('step', 5),
    ]


class Doubtful(Recorder):
    """A tracker in doubt from one frame on, until a detection of that frame or later comes."""

    def __init__(self, doubtful_from_ns):
        super().__init__()
        self._doubtful_from_ns = doubtful_from_ns
        self._now_ns = self._corrected_ns = -1

    def correct(self, stamp_ns, detections):
        super().correct(stamp_ns, detections)
        self._corrected_ns = stamp_ns

    def step(self, stamp_ns, image=None):
        self._now_ns = stamp_ns
        return super().step(stamp_ns, image)

    @property
    def quality(self):
        is_doubtful = self._now_ns >= self._doubtful_from_ns > self._corrected_ns
        return TrackingQuality(uncertainty=9.0 if is_doubtful else 0.0)


@pytest.mark.parametrize(
    ('latency_frames', 'answered_by'),
    # What is asked for once a frame was stepped cannot come before the next.
    [(0, [1, 4, 14]), (1, [1, 4, 14]), (2, [2, 5, 15])],
)
def test_the_adaptive_schedule_is_asked_after_each_step(latency_frames, answered_by):
    frame_ns = 100_000_000
    stamps = [k * frame_ns for k in range(18)]
    sequence = tool.TrackingSequence('s', stamps, [Detections.empty()] * 18, None)
    recorder = Doubtful(doubtful_from_ns=3 * frame_ns)
    parameters = AdaptiveParameters(max_interval_s=1.0, max_load=1.0)
    run = tool.track(sequence, recorder, adaptive=parameters, latency_frames=latency_frames)
    assert run.detected == [0, 3, 13]
    assert run.reasons == {'first frame': 1, 'uncertain tracks': 1, 'longest interval': 1}
    assert run.frames_per_detection == 6.0
    corrected = [
        (stamp // frame_ns, recorder.calls[i + 1][1] // frame_ns)
        for i, (what, stamp) in enumerate(recorder.calls)
        if what == 'correct'
    ]
    assert corrected == list(zip([0, 3, 13], answered_by, strict=True))


def test_a_schedule_is_reported_with_its_load_and_its_reasons(tmp_path, capsys):
    write_sequence(tmp_path / 'mot', 'street', frames=40)
    out = tmp_path / 'out.json'
    arguments = ['--mot-root', str(tmp_path / 'mot'), '--json', str(out), '--latency-frames', '1']
    adaptive = ['--schedule', 'adaptive', '--schedule-set', 'max_uncertainty=9']
    assert tool.main([*arguments, *adaptive, '--schedule-set', 'max_interval_s=0.5']) == 0
    assert 'longest interval 7' in capsys.readouterr().out
    report = json.loads(out.read_text())
    assert report['frames_per_detection'] == 5.0
    assert report['asked_because'] == {'longest interval': 7, 'first frame': 1}
    assert report['settings']['schedule_parameters']['max_uncertainty'] == 9
    assert tool.main([*arguments, '--detect-every', '4']) == 0
    report = json.loads(out.read_text())
    assert report['frames_per_detection'] == 4.0
    assert report['asked_because'] == {}


def test_unknown_parameters_of_the_schedule_are_refused(tmp_path, capsys):
    write_sequence(tmp_path, 'street')
    arguments = ['--mot-root', str(tmp_path), '--schedule', 'adaptive']
    assert tool.main([*arguments, '--schedule-set', 'patience=1']) == 1
    assert 'AdaptiveParameters has no patience' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('break_it', 'message'),
    [
        (lambda folder: (folder / 'seqinfo.ini').unlink(), 'has no sequence'),
        (lambda folder: (folder / 'gt' / 'gt.txt').unlink(), 'gt.txt is missing'),
        (lambda folder: (folder / 'det' / 'det.txt').write_text('1,2,x\n'), 'cannot read'),
        (lambda folder: (folder / 'det' / 'det.txt').write_text('1,2,3\n'), '7 or more columns'),
        (lambda folder: (folder / 'seqinfo.ini').write_text('[Sequence]\n'), 'framerate'),
    ],
)
def test_broken_sequences_are_named(tmp_path, capsys, break_it, message):
    break_it(write_sequence(tmp_path, 'street'))
    assert tool.main(['--mot-root', str(tmp_path)]) == 1
    assert message in capsys.readouterr().err


def test_detections_of_a_video_are_computed_once(tmp_path, demo_clip, reference_data, monkeypatch):
    gt = tmp_path / 'gt.txt'
    gt.write_text('1,1,10,10,40,100,1,-1,-1,-1\n')
    model = str(reference_data / 'models' / 'yolov8n.onnx')
    short = tmp_path / 'clip.avi'
    write_clip(demo_clip, short, frames=4)
    options = {'model': model, 'cache': tmp_path / 'cache'}
    first = tool.open_video(str(short), gt, **options)
    assert sum(len(frame) for frame in first.detections) > 0
    monkeypatch.setattr(tool, 'Detector', None)  # calling it again would fail
    second = tool.open_video(str(short), gt, **options)
    assert second.stamps_ns == first.stamps_ns == [0, 100_000_000, 200_000_000, 300_000_000]
    for one, other in zip(first.detections, second.detections, strict=True):
        np.testing.assert_array_equal(one.xyxy, other.xyxy)
        np.testing.assert_array_equal(one.score, other.score)
    assert len(list(second.images())) == 4
    assert len(list((tmp_path / 'cache').iterdir())) == 1


def write_clip(source, target, *, frames):
    import cv2

    capture = cv2.VideoCapture(str(source))
    writer = None
    for _ in range(frames):
        _, image = capture.read()
        if writer is None:
            size = (image.shape[1], image.shape[0])
            writer = cv2.VideoWriter(str(target), cv2.VideoWriter_fourcc(*'MJPG'), 10, size)
        writer.write(image)
    writer.release()


def test_a_sweep_recommends_the_least_load_that_is_nearly_as_good(tmp_path, capsys):
    write_sequence(tmp_path / 'mot', 'street', frames=40)
    out, picture = tmp_path / 'sweep.json', tmp_path / 'sweep.png'
    arguments = ['--mot-root', str(tmp_path / 'mot'), '--sweep', '--sweep-n', '1', '4']
    arguments += ['--sweep-latency', '0', '--json', str(out), '--plot', str(picture)]
    assert tool.main([*arguments, '--sweep-trackers', 'hybrid', 'iou']) == 0
    rows = json.loads(out.read_text())['rows']
    assert [(row['tracker'], row['schedule'], row['detect_every']) for row in rows] == [
        ('hybrid', 'every_n', 1),
        ('hybrid', 'every_n', 4),
        ('hybrid', 'adaptive', None),
        ('iou', 'every_n', 1),
        ('iou', 'every_n', 4),
        ('iou', 'adaptive', None),
    ]
    assert [row['frames_per_detection'] for row in rows[:2]] == [1.0, 4.0]
    assert 1.0 < rows[2]['frames_per_detection'] <= 10.0
    assert 'Detections 0 frames late' in capsys.readouterr().out
    assert picture.read_bytes().startswith(b'\x89PNG')


def test_the_recommendation_is_in_words():
    def row(every_n, hota, load):
        return {
            'tracker': 'hybrid',
            'detect_every': every_n,
            'frames_per_detection': every_n or 6.25,
            'latency_frames': 3,
            'HOTA': hota,
            'load_percent': load,
        }

    assert tool.recommend([row(1, 60.0, 90.0), row(5, 58.0, 20.0), row(10, 50.0, 11.0)]) == (
        'Detections 3 frames late: tracker hybrid, detect_every_n 5: HOTA 58.0 at 20 % load '
        '(best is 60.0 with hybrid, N = 1, at 90 %).'
    )
    assert tool.recommend([row(1, 60.0, 90.0), row(None, 58.0, 15.0), row(5, 57.5, 20.0)]) == (
        'Detections 3 frames late: tracker hybrid, schedule adaptive (of tracker and detector): '
        'HOTA 58.0 at 15 % load (best is 60.0 with hybrid, N = 1, at 90 %).'
    )
    assert 'best is 60.0 with hybrid, adaptive (N = 6.2), at 15 %' in tool.recommend(
        [row(None, 60.0, 15.0), row(5, 57.5, 20.0)]
    )


def test_a_sequence_without_ground_truth_is_scored_against_its_best_run(tmp_path):
    sequence = tool.open_mot_sequence(write_sequence(tmp_path, 'street'))
    reference = tool.with_reference(replace(sequence, gt_path=None), 'hybrid', tmp_path)
    report = tool.evaluate([reference], lambda: create_tracker('hybrid'))
    assert report['HOTA'] == pytest.approx(100.0, abs=0.1)


def test_scores_of_another_range_become_probabilities(tmp_path):
    folder = write_sequence(tmp_path, 'street')
    path = folder / 'det' / 'det.txt'
    lines = path.read_text().splitlines()
    path.write_text('\n'.join(line.replace(',0.9,', f',{k},') for k, line in enumerate(lines)))
    scores = np.concatenate([d.score for d in tool.open_mot_sequence(folder).detections])
    assert scores.min() == 0.0
    assert scores.max() == 1.0
    assert (np.diff(scores) >= 0).all()
