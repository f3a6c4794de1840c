"""What nodes log, as lines for people or as JSON for machines.

`log_format: json` turns each message into one line with stamp, level, node, event, message and
fields. The console's format belongs to the process: it is JSON when any of its nodes wants it.
Lines that the middleware itself prints stay as they are and do not begin with a brace.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from rclpy.impl import rcutils_logger
from rclpy.impl.rcutils_logger import RcutilsLogger

CONSOLE_FORMAT_VARIABLE = 'RCUTILS_CONSOLE_OUTPUT_FORMAT'

# rclpy tells callers apart by file and line, for throttling; this file is none of them.
rcutils_logger._internal_callers.append(os.path.realpath(__file__))


class EventLogger(RcutilsLogger):
    """The logger of a node, whose messages may carry the name of an event and fields.

    Args:
        name: of the logger, as rclpy has it.
        node: full name of the node, as JSON lines show it.
        as_json: write JSON lines.
    """

    def __init__(self, name: str, node: str, *, as_json: bool) -> None:
        super().__init__(name)
        self._node = node
        self._as_json = as_json

    def log(
        self,
        message: str,
        severity: Any,
        *,
        event: str = 'message',
        fields: Mapping[str, Any] | None = None,
        **filters: Any,
    ) -> bool:
        """Log one message; `info`, `warning` and the others come here.

        Args:
            message: for people.
            severity: rclpy's.
            event: what happened, in a word that stays the same.
            fields: numbers and texts that belong to it.
            filters: rclpy's, such as throttle_duration_sec.

        Returns:
            False when a filter suppressed it.
        """
        if self._as_json:
            line = {
                'stamp': time.time(),
                'level': severity.name,
                'node': self._node,
                'event': event,
                'message': str(message),
                'fields': dict(fields or {}),
            }
            message = json.dumps(line, default=str)
        return bool(super().log(message, severity, **filters))


def apply_log_format(arguments: Sequence[str]) -> bool:
    """Prepare the console for the log format that a command line asks for; before `rclpy.init`.

    Args:
        arguments: with `--ros-args`; parameters and parameter files are looked through.

    Returns:
        Whether JSON is wanted.
    """
    as_json = False
    for value in _log_formats(arguments):
        as_json = value == 'json'  # the last one counts, as for rcl
    if as_json:
        os.environ.setdefault(CONSOLE_FORMAT_VARIABLE, '{message}')
    return as_json


def _log_formats(arguments: Sequence[str]) -> Iterator[Any]:
    for option, value in itertools.pairwise(arguments):
        if option in ('-p', '--param'):
            name, _, text = value.partition(':=')
            if name.rsplit(':', 1)[-1] == 'log_format':
                yield yaml.safe_load(text)
        elif option == '--params-file':
            yield from _log_formats_of_file(value)


def _log_formats_of_file(path: str) -> Iterator[Any]:
    try:
        with open(path, encoding='utf-8') as file:
            sections = yaml.safe_load(file)
    except (OSError, yaml.YAMLError):
        return  # rcl reads it next, and says what is wrong
    waiting = [sections]
    while waiting:
        section = waiting.pop(0)
        if isinstance(section, dict):
            parameters = section.get('ros__parameters')
            if isinstance(parameters, dict) and 'log_format' in parameters:
                yield parameters['log_format']
            waiting.extend(section.values())
