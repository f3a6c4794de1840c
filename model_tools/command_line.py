"""What the command lines of these tools share: a line for each failure, files whole or absent."""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, TypeVar, cast

from rich.console import Console
from rich.progress import track

from edge_perception.media.atomic import temporary_beside
from edge_perception.types import EdgePerceptionError

Item = TypeVar('Item')
Function = TypeVar('Function', bound=Callable[..., Any])
Main = Callable[[Sequence[str] | None], int]
INTERRUPTED = 130
"""Exit status after Ctrl-C: 128 and the number of the signal, as shells have it."""
AGAIN_S = 0.05
_uninterrupted: set[CodeType] = set()


class OutputError(EdgePerceptionError):
    """A result cannot be written."""


def command(tool: str, *, stopped: str = 'no file was written') -> Callable[[Main], Any]:
    """Let a tool's `main` end each failure with one line on standard error and no traceback.

    Args:
        tool: name of the tool, which begins the line.
        stopped: what Ctrl-C leaves behind.

    Returns:
        A decorator; the exit status is 1 after an error and 130 after Ctrl-C.
    """

    def decorate(main: Main) -> Callable[..., int]:
        @functools.wraps(main)
        def guarded(arguments: Sequence[str] | None = None) -> int:
            try:
                with _interrupts_where_they_may():
                    return main(arguments)
            except (EdgePerceptionError, OSError) as error:
                print(f'{tool}: {error}', file=sys.stderr)
                return 1
            except KeyboardInterrupt:
                print(f'{tool}: stopped, {stopped}', file=sys.stderr)
                return INTERRUPTED

        return guarded

    return decorate


def uninterrupted(function: Function) -> Function:
    """Mark a function that native code calls: Ctrl-C waits until it has returned."""
    _uninterrupted.add(function.__code__)
    return function


@contextlib.contextmanager
def _interrupts_where_they_may() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, but not where that would do harm: there it waits.

    Harm is done in the initialisation of native modules (that of onnx aborts the process), in
    calls from native code, and between the making of a temporary folder and the moment from which
    it would be removed.
    """

    def interrupt(signum: int, frame: FrameType | None) -> None:
        if not _does_harm(frame):
            raise KeyboardInterrupt
        again = threading.Timer(AGAIN_S, os.kill, (os.getpid(), signal.SIGINT))
        again.daemon = True
        again.start()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _does_harm(frame: FrameType | None) -> bool:
    """Whether an exception here would."""
    while frame is not None:
        code = frame.f_code
        if (
            code in _uninterrupted
            or code.co_filename == tempfile.__file__
            or isinstance(frame.f_locals.get('self'), ExtensionFileLoader)
        ):
            return True
        frame = frame.f_back
    return False


def parse_size(text: str) -> tuple[int, int]:
    """Width and height in pixels from `1280x720`.

    Raises:
        argparse.ArgumentTypeError: it is no size.
    """
    width, _, height = text.partition('x')
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f'{text!r} is no size such as 1280x720')
    return int(width), int(height)


@contextlib.contextmanager
def progress(
    items: Iterable[Item], label: str, total: float | None = None
) -> Iterator[Iterator[Item]]:
    """Pass items on behind a bar on standard error, which is gone before an error is printed."""
    shown = track(items, label, total=total, console=Console(stderr=True))
    with contextlib.closing(cast('Generator[Item, None, None]', shown)) as passed:
        yield passed


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file beside its place and move it there; its folder is made when absent.

    Args:
        path: the file.
        write: given a path with the same suffix, writes the content there.

    Raises:
        OutputError: it cannot be written; what was there before still is.
    """
    beside = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(beside)
        os.replace(beside, path)
    except OSError as error:
        raise OutputError(f'cannot write {path}: {error.strerror or error}') from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


@contextlib.contextmanager
def folder_beside(path: Path, prefix: str) -> Iterator[Path]:
    """A folder on the disk of a file, for what is not whole yet; nothing stays of it.

    Args:
        path: the file that is to be; its folder is made when absent.
        prefix: of the folder's name.

    Raises:
        OutputError: something in it cannot be written, or moved to its place.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=prefix, dir=path.parent) as folder:
            yield Path(folder)
    except OSError as error:
        raise OutputError(f'cannot write {path}: {error}') from error
