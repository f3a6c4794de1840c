"""Readings of the real machine."""

from edge_perception.metrics.system import SystemSampler


def test_sample_sees_the_work_of_this_process():
    sampler = SystemSampler()
    ballast = bytearray(64 * 2**20)
    ballast[::4096] = b'x' * len(ballast[::4096])
    for _ in range(200):
        sum(range(20_000))
    sample = sampler.sample()
    assert sample.process_cpu_percent > 10.0
    assert 64.0 < sample.process_rss_mib < 64_000.0
    assert 0.0 <= sample.cpu_percent <= 100.0
    assert 0.0 < sample.memory_percent < 100.0
    assert sample.temperature_c is None or -50.0 < sample.temperature_c < 150.0
