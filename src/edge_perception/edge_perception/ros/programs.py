"""Nodes as processes of their own: how they are started and ended."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

END_S = 10.0


def node_command(name: str, parameters: Sequence[str] = ()) -> list[str]:
    """Program and arguments that run a node.

    Args:
        name: of its module, such as perception.
        parameters: each as `NAME:=VALUE`, or `NODE:NAME:=VALUE` for one node of several.
    """
    command = [sys.executable, '-m', f'edge_perception.nodes.{name}', '--ros-args']
    for each in parameters:
        command += ['-p', each]
    return command


def end_process(process: subprocess.Popen[Any]) -> None:
    """End a process as Ctrl-C would, and by force where that does not help."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
