"""The metrics node on the real middleware."""

from diagnostic_msgs.msg import DiagnosticStatus

from edge_perception.nodes.metrics import MetricsNode
from edge_perception.nodes.tracker import TrackerNode


def test_summary_repeats_what_the_nodes_say(graph, images):
    graph.add(TrackerNode)
    graph.add(MetricsNode, nodes='tracker')
    images.wait_for_subscribers()
    for _ in range(3):
        images.send()
    graph.until(
        lambda: float(graph.diagnostics.get('metrics', {}).get('tracker.fps', 0)) > 0,
        'the rate of the tracker in the summary',
    )
    graph.until(
        lambda: any(key.startswith('process.') for key in graph.diagnostics['metrics']), 'the load'
    )
    values = graph.diagnostics['metrics']
    assert float(values['end_to_end_ms.p95']) > 0
    assert 0 <= float(values['cpu_percent']) <= 100
    (rss_mib,) = [
        float(v) for k, v in values.items() if k.startswith('process.') and k.endswith('rss_mib')
    ]
    assert rss_mib > 10


def test_silent_node_is_an_error_and_heard_again_is_not(graph):
    graph.add(MetricsNode, nodes='tracker', silent_after_s=1.5)
    graph.until(
        lambda: graph.levels.get('metrics', (b'', ''))[0] == DiagnosticStatus.ERROR, 'an error'
    )
    assert 'tracker is silent' in graph.levels['metrics'][1]
    graph.add(TrackerNode)
    graph.until(
        lambda: graph.levels['metrics'][0] != DiagnosticStatus.ERROR, 'the end of the error'
    )
