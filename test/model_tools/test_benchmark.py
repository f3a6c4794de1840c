from __future__ import annotations

import json

import benchmark
import numpy as np
import pytest


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
        (['--json', '/nonexistent-folder/a.json', '--runs', '1'], 'cannot write'),
    ],
)
def test_error_is_one_line(default_model, capsys, extra, message):
    status = benchmark.main(['--model', str(default_model), '--warm-up', '0', *extra])
    assert status == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith('benchmark: ')
    assert message in error


@pytest.mark.parametrize('text', ['1280', 'axb', '1280x', 'x720', ''])
def test_bad_size(text):
    with pytest.raises(benchmark.argparse.ArgumentTypeError):
        benchmark.parse_size(text)


def test_size_is_width_by_height():
    assert benchmark.parse_size('1280x720') == (720, 1280)
