from __future__ import annotations

import json
import os

import benchmark
import benchmark_cameras
import benchmark_graph
import numpy as np
import pytest
from command_line import parse_size


def test_report_of_the_default_model(default_model, tmp_path, capsys):
    path = tmp_path / 'out.json'
    status = benchmark.main(
        ['--model', str(default_model), str(default_model), '--runs', '3', '--warm-up', '1',
         '--batch', '2', '--frame-size', '640x480', '--json', str(path)]
    )  # fmt: skip
    assert status == 0
    report = json.loads(path.read_text())
    assert report['frame_hw'] == [480, 640]
    assert len(report['results']) == 2
    result = report['results'][0]
    assert result['model'] == 'person_416.onnx'
    assert result['runs'] == 3
    assert result['batch'] == 2
    latency = result['latency_ms']
    assert 0 < latency['p50'] <= latency['p90'] <= latency['p95'] <= latency['p99']
    assert set(result['stages_ms']) == {'preprocess', 'inference', 'postprocess'}
    assert result['fps'] == pytest.approx(2e3 / latency['p50'])
    assert result['ratio'] == pytest.approx(latency['p50'] / result['bare_run_ms']['p50'])
    assert 0 < result['cpu_percent'] < 100 * (os.cpu_count() or 1) * 1.5
    assert report['machine']['rss_mib'] > 50
    assert (tmp_path / 'out.png').read_bytes().startswith(b'\x89PNG')
    table = capsys.readouterr().out
    assert 'ratio' in table
    assert 'person_416.onnx' in table


def test_summary_is_average_and_percentiles():
    samples = list(range(1, 102))
    assert benchmark.summary(samples) == pytest.approx(
        {'avg': 51, 'p50': 51, 'p90': 91, 'p95': 96, 'p99': 100}
    )


def test_image_of_a_source_is_its_first_frame(demo_clip):
    assert benchmark.first_image(str(demo_clip), (1, 1)).shape == (576, 768, 3)


def test_without_a_source_the_image_is_noise_that_repeats():
    first = benchmark.first_image(None, (4, 6))
    assert first.shape == (4, 6, 3)
    np.testing.assert_array_equal(first, benchmark.first_image(None, (4, 6)))


@pytest.mark.parametrize(
    ('extra', 'message'),
    [
        (['--model', 'no.onnx'], 'model file not found: no.onnx'),
        (['--source', 'no.mp4'], 'no.mp4'),
        (['--runs', '0'], 'must be at least 1'),
        (['--json', '/proc/version/a.json', '--runs', '1'], 'cannot write'),
    ],
)
def test_error_is_one_line(default_model, capsys, tmp_path, monkeypatch, extra, message):
    monkeypatch.chdir(tmp_path)
    status = benchmark.main(['--model', str(default_model), '--warm-up', '0', *extra])
    assert status == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith('benchmark: ')
    assert message in error


@pytest.mark.parametrize('text', ['1280', 'axb', '1280x', 'x720', '', '0x720', '-1x3'])
@pytest.mark.parametrize(
    'arguments',
    [
        (benchmark, ['--model', 'none.onnx', '--frame-size']),
        (benchmark_graph, ['--size']),
        (benchmark_cameras, ['--size']),
    ],
)
def test_bad_size_is_one_line(arguments, text, capsys):
    tool, options = arguments
    with pytest.raises(SystemExit):
        tool.main([*options[:-1], f'{options[-1]}={text}'])
    assert f'{text!r} is no size such as 1280x720' in capsys.readouterr().err


def test_size_is_width_by_height():
    assert parse_size('1280x720') == (1280, 720)


def test_every_backend_is_measured_and_what_cannot_be_is_said(
    default_model, tmp_path, capsys, monkeypatch
):
    pytest.importorskip('ultralytics', reason='needs `make setup-training`')
    monkeypatch.chdir(tmp_path)
    status = benchmark.main(
        ['--model', str(default_model), '--backend', 'onnx', 'openvino', 'pytorch',
         '--runs', '2', '--warm-up', '1', '--frame-size', '320x240', '--ultralytics']
    )  # fmt: skip
    assert status == 0
    report = json.loads((tmp_path / 'benchmark_results.json').read_text())
    assert [item['backend'] for item in report['results']] == ['onnx', 'openvino']
    for result in report['results']:
        medians = result['ultralytics_ms']['p50'], result['latency_ms']['p50']
        assert result['times_faster_than_ultralytics'] == pytest.approx(medians[0] / medians[1])
        assert 'ratio' in result
    assert 'not a file of backend pytorch' in capsys.readouterr().err


def test_energy_is_read_from_the_counters_of_the_kernel(tmp_path):
    zone = tmp_path / 'intel-rapl:0'
    zone.mkdir()
    (zone / 'name').write_text('package-0\n')
    (zone / 'energy_uj').write_text('2500000\n')
    (tmp_path / 'intel-rapl:1').mkdir()  # one that may not be read
    meters = [m for m in benchmark.energy_meters(tmp_path) if not m.name.startswith('gpu')]
    assert [meter.name for meter in meters] == ['package-0']
    assert meters[0].joules() == 2.5
