"""Ctrl-C and a full disk in every tool: one line, nothing half-written."""

from __future__ import annotations

import fcntl
import importlib
import os
import re
import select
import shutil
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import benchmark
import cv2
import pytest

from edge_perception.media import open_source

TOOLS = Path(__file__).resolve().parents[2] / 'model_tools'


@dataclass(frozen=True)
class Place:
    """What the tools are given.

    Attributes:
        model: ONNX file of a detector, in a folder of its own.
        checkpoint: the same for PyTorch; untrained.
        images: folder of images.
        data: YAML of a YOLO dataset.
        video: a short clip.
        truth: its ground truth.
        cache: folder for detections.
        out: folder for what the tool writes.
    """

    model: Path
    checkpoint: Path
    images: Path
    data: Path
    video: Path
    truth: Path
    cache: Path
    out: Path


@pytest.fixture
def place(default_model, checkpoint, demo_clip, squares, tmp_path) -> Place:
    images, out = tmp_path / 'images', tmp_path / 'out'
    images.mkdir()
    out.mkdir()
    with open_source(demo_clip) as source:
        for number, frame in zip(range(3), source, strict=False):
            cv2.imwrite(str(images / f'{number}.jpg'), frame.image)
    truth = tmp_path / 'gt.txt'
    truth.write_text(''.join(f'{n},1,10,10,50,100,1,1,1\n' for n in range(1, 4)))
    model = tmp_path / 'model' / 'person.onnx'
    model.parent.mkdir()
    shutil.copyfile(default_model, model)
    squares.write_text(squares.read_text().replace('square', 'person'))
    return Place(model, checkpoint, images, squares, demo_clip, truth, tmp_path / 'cache', out)


@dataclass(frozen=True)
class Case:
    """How a tool is started.

    Attributes:
        tool: its name.
        arguments: of its command line, with the names of a Place in braces.
        busy: in the middle of the work, this is on the screen or such a file is in the folder.
        stopped: what it says after Ctrl-C.
    """

    tool: str
    arguments: str
    busy: str
    stopped: str = 'no file was written'

    def command_line(self, place: Place) -> list[str]:
        return [item.format(**vars(place)) for item in self.arguments.split()]


INTERRUPTIONS = [
    Case(
        'autolabel',
        '--model {model} --source {video} --out {out}/set',
        'set/.autolabel-*/labels/*.txt',
        'nothing was added',
    ),
    Case('export_onnx', '--model {checkpoint} --out {out}/a.onnx', '.export-*'),
    Case(
        'quantize_onnx',
        '--model {model} --calibration {video} --data {data} --out {out}/a.onnx',
        '.quantize-*',
    ),
    Case(
        'calibrate_int8',
        '--model {model} --calibration {video} --out {out}/a.onnx',
        '.calibrate-*',
    ),
    Case(
        'build_tensorrt',
        '--model {model} --precision int8 --calibration {video} --out {out}/a.engine',
        '.build-*',
    ),
    Case('benchmark', '--model {model} --runs 10000 --json {out}/a.json', 'benchmark '),
    Case(
        'evaluate_detection',
        '--model {model} --source {video} --mot-gt {truth} --json {out}/a.json',
        'evaluate ',
    ),
    Case(
        'evaluate_tracking',
        '--model {model} --video {video} --gt {truth} --cache {out} --json {out}/a.json',
        'detect',
    ),
]


class Terminal:
    """A command on a terminal of its own, where Ctrl-C is a key."""

    def __init__(self, command: list[str], **options: object) -> None:
        self._ours, theirs = os.openpty()
        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            **options,  # type: ignore[arg-type]
        )
        os.close(theirs)
        os.set_blocking(self._ours, False)
        self._shown = b''

    def screen(self) -> str:
        """What the command has written until now."""
        while True:
            try:
                part = os.read(self._ours, 65536)
            except OSError:  # nothing now, or nobody writes any more
                break
            if not part:
                break
            self._shown += part
        # Without colours, and without the key as the terminal shows it.
        text = re.sub(rb'\x1b\[[0-9;?]*[a-zA-Z]|\^C', b'', self._shown)
        return text.decode(errors='replace').replace('\r', '\n')

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Until it holds, or the command has ended."""
        while self.process.poll() is None and not condition():
            select.select([self._ours], [], [], 0.02)

    def press_ctrl_c(self) -> None:
        os.write(self._ours, b'\x03')

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._ours)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(command: list[str], **options: object) -> Terminal:
        opened.append(Terminal(command, **options))
        return opened[-1]

    yield start
    for item in opened:
        item.close()


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*'))


@pytest.mark.parametrize('case', INTERRUPTIONS, ids=lambda case: case.tool)
def test_ctrl_c_ends_with_one_line_and_nothing_half_written(case, place, terminal, tmp_path):
    if case.tool == 'export_onnx':
        pytest.importorskip('ultralytics', reason='needs `make setup-training`')
    before = files_of(place.model.parent)
    scratch = tmp_path / 'scratch'
    scratch.mkdir()
    run = terminal(
        [sys.executable, str(TOOLS / f'{case.tool}.py'), *case.command_line(place)],
        cwd=tmp_path,
        env={**os.environ, 'TMPDIR': str(scratch), 'COLUMNS': '200'},
    )
    run.wait_until(lambda: case.busy in run.screen() or any(place.out.glob(case.busy)))
    assert run.process.poll() is None, run.screen()
    run.press_ctrl_c()
    assert run.process.wait(60) == 130, run.screen()
    screen = run.screen()
    assert screen.rstrip().splitlines()[-1] == f'{case.tool}: stopped, {case.stopped}'
    assert 'Traceback' not in screen
    assert files_of(place.out) == []
    assert files_of(place.model.parent) == before
    # ONNX Runtime names its session there, and never removes it.
    assert set(files_of(scratch)) <= {'.ses'}


FULL_DISKS = [
    Case(
        'autolabel',
        '--model {model} --source {images} --out {out}/set',
        'cannot write the dataset',
    ),
    Case(
        'calibrate_int8',
        '--model {model} --calibration {images} --out {out}/a.onnx',
        'cannot write',
    ),
    Case(
        'evaluate_detection',
        '--model {model} --source {images} --mot-gt {truth} --json {out}/a.json',
        'a.json',
    ),
    Case(
        'evaluate_tracking',
        '--model {model} --video {images} --gt {truth} --cache {cache} --json {out}/a.json',
        'a.json',
    ),
    Case(
        'evaluate_tracking',
        '--model {model} --video {images} --gt {truth} --cache {cache} --plot {out}/a.png '
        '--sweep --sweep-n 1 --sweep-latency 0 --sweep-trackers iou',
        'a.png',
    ),
    Case(
        'evaluate_tracking', '--model {model} --video {images} --gt {truth} --cache {out}', '.npz'
    ),
    Case('benchmark', '--model {model} --runs 1 --json {out}/a.json', 'a.json'),
]


@pytest.mark.parametrize('case', FULL_DISKS, ids=lambda case: f'{case.tool} {case.busy}')
def test_full_disk_is_one_line_and_leaves_nothing(case, place, full_disk, capsys):
    """Not a byte is left; the tool runs in this process."""
    tool = importlib.import_module(case.tool)
    disk = Place(**{**vars(place), 'out': full_disk})
    (full_disk / 'taken').write_bytes(bytes(os.statvfs(full_disk).f_bavail * 4096))
    assert tool.main(case.command_line(disk)) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith(f'{case.tool}: cannot write'), lines
    assert case.busy in lines[-1]
    assert 'No space left on device' in lines[-1]
    assert files_of(full_disk) == ['taken']


def test_plot_of_a_benchmark_on_a_full_disk(place, full_disk, capsys):
    """The figures still fit, the plot does not."""
    free = os.statvfs(full_disk).f_bavail
    (full_disk / 'taken').write_bytes(bytes((free - 2) * 4096))
    arguments = ['--model', str(place.model), '--runs', '1', '--json', str(full_disk / 'a.json')]
    assert benchmark.main(arguments) == 1
    assert 'a.png: No space left' in capsys.readouterr().err
    assert files_of(full_disk) == ['a.json', 'taken']
