"""Readings of the real machine, and of a Jetson's files."""

import os
import subprocess
import sys

import pytest

from edge_perception.metrics.system import SystemSampler


@pytest.fixture
def sampler(tmp_path):
    sampler = SystemSampler(tmp_path)
    yield sampler
    sampler.close()


def test_sample_sees_the_work_of_this_process(sampler):
    sampler.sample([os.getpid()])
    ballast = bytearray(64 * 2**20)
    ballast[::4096] = b'x' * len(ballast[::4096])
    for _ in range(200):
        sum(range(20_000))
    sample = sampler.sample([os.getpid()])
    process = sample.processes[os.getpid()]
    assert process.cpu_percent > 10.0
    assert 64.0 < process.rss_mib < 64_000.0
    assert process.threads >= 1
    assert 0.0 <= sample.cpu_percent <= 100.0
    assert 0.0 < sample.memory_percent < 100.0
    assert sample.temperature_c is None or -50.0 < sample.temperature_c < 150.0


def test_process_that_ended_is_left_out(sampler):
    child = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)
    assert child.pid in sampler.sample([child.pid]).processes
    child.communicate()
    assert sampler.sample([child.pid]).processes == {}


@pytest.mark.parametrize(
    'folder',
    ['devices/gpu.0', 'devices/platform/17000000.gpu', 'devices/platform/bus@0/17000000.gpu'],
)
def test_jetson_gpu_is_read_from_sysfs(tmp_path, folder):
    load = tmp_path / folder / 'load'
    load.parent.mkdir(parents=True)
    load.write_text('437\n')
    for index, (kind, temperature) in enumerate([('cpu-thermal', 51000), ('gpu-thermal', 47500)]):
        zone = tmp_path / f'class/thermal/thermal_zone{index}'
        zone.mkdir(parents=True)
        (zone / 'type').write_text(f'{kind}\n')
        (zone / 'temp').write_text(f'{temperature}\n')
    sampler = SystemSampler(tmp_path)
    (gpu,) = sampler.sample().gpus
    assert (gpu.usage_percent, gpu.temperature_c) == (43.7, 47.5)
    load.unlink()  # a driver that was unloaded must not end the node
    assert all(gpu.name != 'Jetson GPU' for gpu in sampler.sample().gpus)


def test_nvidia_gpu_tells_memory_and_temperature(sampler):
    gpus = sampler.sample().gpus
    if not gpus:
        pytest.skip('GPU of NVIDIA is not here')
    for gpu in gpus:
        assert gpu.name
        assert 0 < gpu.memory_used_mib <= gpu.memory_total_mib
        assert 0 < gpu.temperature_c < 120
