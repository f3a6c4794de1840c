"""The numbers of the pipeline in the text formats of Prometheus and OpenMetrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from edge_perception.api.pipeline import Histogram, Pipeline
from edge_perception.api.schemas import Health, Metrics

PREFIX = 'edge_perception'
LEVELS = {'ok': 0, 'warn': 1, 'error': 2, 'stale': 3}


def exposition(
    pipeline: Pipeline,
    metrics: Metrics,
    responses: Mapping[tuple[str, int], int],
    accept: str,
) -> tuple[bytes, str]:
    """The page that Prometheus scrapes.

    Args:
        pipeline: for its histograms and the state of its nodes.
        metrics: numbers now.
        responses: how many responses, by path and status.
        accept: header of the request; it chooses between the two text formats.

    Returns:
        The text, and its content type.
    """
    registry = CollectorRegistry(auto_describe=False)
    families = [
        *_latency(pipeline.histograms()),
        *_pipeline(metrics),
        *_load(metrics),
        *_nodes(pipeline.health()),
        *_http(metrics, responses),
    ]
    registry.register(_Collector(families))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class _Collector:
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def _gauge(
    name: str, text: str, values: Iterable[tuple[tuple[str, ...], float | None]], *labels: str
) -> list[Metric]:
    """A gauge of the values that are known; nothing when none is."""
    family = GaugeMetricFamily(f'{PREFIX}_{name}', text, labels=labels)
    for label_values, value in values:
        if value is not None:
            family.add_metric(list(label_values), float(value))
    return [family] if family.samples else []


def _counter(
    name: str, text: str, values: Iterable[tuple[tuple[str, ...], float | None]], *labels: str
) -> list[Metric]:
    family = CounterMetricFamily(f'{PREFIX}_{name}', text, labels=labels)
    for label_values, value in values:
        if value is not None:
            family.add_metric(list(label_values), float(value))
    return [family] if family.samples else []


def _latency(histograms: Mapping[tuple[str, str], Histogram]) -> list[Metric]:
    family = HistogramMetricFamily(
        f'{PREFIX}_stage_latency_seconds',
        'Duration of a stage of a node; stage end_to_end begins at the stamp of the image',
        labels=['node', 'stage'],
    )
    for (node, stage), histogram in sorted(histograms.items()):
        buckets = [
            (f'{bound:.10g}', float(count))
            for bound, count in zip(histogram.bounds_s, histogram.cumulative, strict=True)
        ]
        family.add_metric(
            [node, stage], [*buckets, ('+Inf', float(histogram.count))], histogram.sum_s
        )
    return [family] if family.samples else []


def _pipeline(metrics: Metrics) -> list[Metric]:
    nodes = sorted(metrics.nodes.items())
    return [
        *_gauge(
            'frames_per_second',
            'Images that a node works on each second',
            (((name,), counts.fps) for name, counts in nodes),
            'node',
        ),
        *_counter(
            'images',
            'Images of a node, by what became of them',
            (
                ((name, outcome), getattr(counts, outcome))
                for name, counts in nodes
                for outcome in ('received', 'dropped', 'failed')
            ),
            'node',
            'outcome',
        ),
        *_counter(
            'inferences',
            'Runs of the detector',
            (((backend,), count) for backend, count in sorted(metrics.backend_usage.items())),
            'backend',
        ),
    ]


def _load(metrics: Metrics) -> list[Metric]:
    def ratio(percent: float | None) -> float | None:
        return None if percent is None else percent / 100

    def mebibytes(value: float | None) -> float | None:
        return None if value is None else value * 2**20

    processes = sorted(metrics.processes.items())
    gpus = [((str(index), gpu.name), gpu) for index, gpu in enumerate(metrics.gpus)]
    gpu_labels = ('gpu', 'name')
    return [
        *_gauge(
            'cpu_usage_ratio', 'Load of all cores together', [((), ratio(metrics.cpu_percent))]
        ),
        *_gauge('memory_usage_ratio', 'Memory in use', [((), ratio(metrics.memory_percent))]),
        *_gauge('temperature_celsius', 'Of the hottest sensor', [((), metrics.temperature_c)]),
        *_gauge(
            'process_cpu_cores',
            'Cores that a process keeps busy',
            (((name,), ratio(load.cpu_percent)) for name, load in processes),
            'process',
        ),
        *_gauge(
            'process_resident_memory_bytes',
            'Resident memory of a process',
            (((name,), mebibytes(load.rss_mib)) for name, load in processes),
            'process',
        ),
        *_gauge(
            'process_threads',
            'Threads of a process',
            (((name,), load.threads) for name, load in processes),
            'process',
        ),
        *_gauge(
            'gpu_usage_ratio',
            'Share of time in which a GPU computes',
            ((key, ratio(gpu.usage_percent)) for key, gpu in gpus),
            *gpu_labels,
        ),
        *_gauge(
            'gpu_memory_used_bytes',
            'Memory of a GPU in use',
            ((key, mebibytes(gpu.memory_used_mib)) for key, gpu in gpus),
            *gpu_labels,
        ),
        *_gauge(
            'gpu_temperature_celsius',
            'Of the chip',
            ((key, gpu.temperature_c) for key, gpu in gpus),
            *gpu_labels,
        ),
        *_gauge(
            'gpu_power_watts',
            'Drawn by a GPU',
            ((key, gpu.power_w) for key, gpu in gpus),
            *gpu_labels,
        ),
    ]


def _nodes(health: Health) -> list[Metric]:
    nodes = sorted(health.nodes.items())
    return [
        *_gauge(
            'healthy',
            'Whether /health answers 200',
            [((), float(health.status != 'error'))],
        ),
        *_gauge(
            'output',
            'Whether tracks come out',
            [((), float(not health.why_no_output))],
        ),
        *_gauge(
            'node_level',
            'Diagnostics of a node: 0 OK, 1 WARN, 2 ERROR, 3 silent',
            (((name,), LEVELS[node.level]) for name, node in nodes),
            'node',
        ),
        *_gauge(
            'node_active',
            'Whether a node is in the lifecycle state active',
            (((name,), float(node.state == 'active')) for name, node in nodes),
            'node',
        ),
    ]


def _http(metrics: Metrics, responses: Mapping[tuple[str, int], int]) -> list[Metric]:
    return [
        *_counter(
            'http_responses',
            'Responses of the gateway',
            (((path, str(status)), count) for (path, status), count in sorted(responses.items())),
            'path',
            'status',
        ),
        *_gauge('stream_viewers', 'Open video streams', [((), metrics.requests.viewers)]),
    ]
