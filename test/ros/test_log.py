"""JSON lines on request, as a process prints them."""

import json
import subprocess
import sys

import pytest

from edge_perception.ros.log import apply_log_format

SCRIPT = """
import sys
from edge_perception.nodes.tracker import TrackerNode
from edge_perception.ros import process

class Talker(TrackerNode):
    def activate(self):
        super().activate()
        self.get_logger().warning('it has "quotes"\\nand lines', event='seen', fields={'n': 3})
        for number in range(3):
            self.get_logger().error('again', throttle_duration_sec=60.0)
        self.log_error_once_a_second(ValueError('broken'))
        raise SystemExit

process.main(Talker)
"""


def output(*arguments, tmp_path):
    script = tmp_path / 'talker.py'
    script.write_text(SCRIPT)
    process = subprocess.run(
        [sys.executable, script, '--ros-args', *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60.0,
    )
    return process.stdout


@pytest.mark.parametrize('way', ['parameter', 'of a node', 'file'])
def test_json_lines_have_stamp_node_event_and_fields(tmp_path, way):
    if way == 'file':
        params = tmp_path / 'params.yaml'
        params.write_text('/**/tracker:\n  ros__parameters:\n    log_format: json\n')
        arguments = ['--params-file', str(params)]
    else:
        prefix = 'tracker:' if way == 'of a node' else ''
        arguments = ['-p', f'{prefix}log_format:=json']
    lines = output(*arguments, tmp_path=tmp_path).splitlines()
    entries = [json.loads(line) for line in lines if line.startswith('{')]
    seen = next(entry for entry in entries if entry['event'] == 'seen')
    assert seen['node'] == '/tracker'
    assert seen['level'] == 'WARN'
    assert seen['message'] == 'it has "quotes"\nand lines'
    assert seen['fields'] == {'n': 3}
    assert seen['stamp'] > 1.7e9
    assert len([entry for entry in entries if entry['message'] == 'again']) == 1, 'throttled'
    assert 'ValueError' in [entry['event'] for entry in entries]


def test_lines_are_for_people_otherwise(tmp_path):
    text = output(tmp_path=tmp_path)
    assert '[WARN]' in text
    assert 'it has "quotes"\nand lines' in text
    assert '"event"' not in text


@pytest.mark.parametrize(
    ('arguments', 'expected'),
    [
        ([], False),
        (['--ros-args', '-p', 'log_format:=json'], True),
        (['--ros-args', '--param', 'detector:log_format:=json'], True),
        (['--ros-args', '-p', 'log_format:=json', '-p', 'log_format:=text'], False),
        (['--ros-args', '-p', 'other_log_format:=json'], False),
        (['--ros-args', '--params-file', '/no/such/file.yaml'], False),
    ],
)
def test_last_argument_decides(arguments, expected, monkeypatch):
    monkeypatch.setenv('RCUTILS_CONSOLE_OUTPUT_FORMAT', 'kept')
    assert apply_log_format(arguments) is expected
