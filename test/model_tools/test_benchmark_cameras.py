"""The measurement of several cameras."""

import argparse
import json
import subprocess
import sys

import pytest

pytest.importorskip('rclpy', reason='rclpy is not there: run make setup')

import benchmark_cameras
from benchmark_cameras import Case, fair_shares


@pytest.mark.parametrize(
    'wanted, total, shares',
    [
        ([10, 10], 10, [5, 5]),  # too much for both
        ([120, 10], 30, [20, 10]),  # who wants less has it, the other the rest
        ([120, 10, 10], 24, [8, 8, 8]),
        ([5, 1, 3], 9, [5, 1, 3]),  # enough for all
        ([4, 4], 0, [0, 0]),
        ([], 3, []),
    ],
)
def test_what_is_fair(wanted, total, shares):
    assert fair_shares(wanted, total) == pytest.approx(shares)


def test_a_case_is_read():
    case = Case.parse('1x120+2x7.5/3')
    assert case.rates_hz == (120.0, 7.5, 7.5)
    assert case.every_n == 3
    assert len(set(case.cameras)) == 3
    assert Case.parse('1x30/5').cameras == ('',)


@pytest.mark.parametrize('text', ['8x10', '8/5', 'x10/5', '2x0/1', '0x10/1', '2x10/0', '2x10/n'])
def test_what_is_no_case(text):
    with pytest.raises(argparse.ArgumentTypeError, match=r'is not|must be'):
        Case.parse(text)


def test_two_cameras_are_measured(tmp_path):
    file = tmp_path / 'figures.json'
    command = [sys.executable, benchmark_cameras.__file__, '2x5/2', '--seconds', '2']
    command += ['--size', '320x240', '--json', str(file)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120.0)
    assert result.returncode == 0, result.stderr
    (figures,) = json.loads(file.read_text())['cases']['2x5/2']
    assert [camera['published'] for camera in figures['cameras']] == [10, 10]
    assert figures['wanted_detections_hz'] == 5.0
    assert figures['detections_hz'] > 1.0
    assert 0.0 < figures['lowest_share'] <= 1.5
    assert figures['tracks_p95_ms'] >= figures['tracks_p50_ms'] > 0.0
    assert figures['rss_mib'] > 50.0
    assert '2x5/2' in result.stdout
