"""config/security against the running nodes, and that a secured node never runs unsecured."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from sensor_msgs.msg import Image

from edge_perception.nodes.detector import DetectorNode
from edge_perception.nodes.gateway import GatewayNode
from edge_perception.nodes.metrics import MetricsNode
from edge_perception.nodes.source import SourceNode
from edge_perception.nodes.tracker import TrackerNode
from edge_perception.nodes.visualizer import VisualizerNode
from edge_perception.ros.qos import image_qos

FOLDER = Path(__file__).resolve().parents[2] / 'config' / 'security'
INCLUDE = '{http://www.w3.org/2001/XInclude}include'
# What a node does in another configuration than that of the test, or only while asked to.
ELSEWHERE = {
    ('subscribe', '/clock'),
    ('subscribe', '/image_raw'),
    ('subscribe', '/image_raw/compressed'),
    ('subscribe', '/image_annotated/compressed'),
}

Permission = tuple[str, str]


def profile_permissions(profile: ElementTree.Element) -> set[Permission]:
    """(publish, subscribe or reply; name) of all that a profile allows, as SROS2 reads it."""
    namespace, node = profile.get('ns', '').rstrip('/'), profile.get('node')
    children = [*profile, *ElementTree.parse(FOLDER / 'common.xml').getroot()]
    assert profile.find(INCLUDE).get('href') == 'common.xml'
    found = set()
    for child in children:
        for kind in ('publish', 'subscribe', 'reply', 'request'):
            if child.get(kind) == 'ALLOW':
                for item in child:
                    name = item.text.replace('~', f'{namespace}/{node}', 1)
                    found.add((kind, name if name.startswith('/') else f'{namespace}/{name}'))
            assert child.get(kind) in (None, 'ALLOW')
    return found


def permissions() -> dict[str, dict[str, set[Permission]]]:
    """The same for each node of each enclave."""
    root = ElementTree.parse(FOLDER / 'policy.xml').getroot()
    return {
        enclave.get('path', '').removeprefix('/edge_perception/'): {
            profile.get('node', ''): profile_permissions(profile)
            for profile in enclave.iter('profile')
        }
        for enclave in root.iter('enclave')
    }


def test_each_node_may_do_what_it_does_and_nothing_else(graph, demo_clip):
    graph.add(SourceNode, source=str(demo_clip), loop=True)
    graph.add(DetectorNode)
    graph.add(TrackerNode, schedule='adaptive')
    graph.add(VisualizerNode)
    graph.add(MetricsNode)
    graph.add(GatewayNode, port=0)
    # The visualizer works only for somebody.
    graph.collect(Image, 'image_annotated', image_qos(2))

    def used(name: str) -> set[Permission]:
        node = graph.node
        return {
            (kind, topic)
            for kind, names in (
                ('publish', node.get_publisher_names_and_types_by_node(name, '/')),
                ('subscribe', node.get_subscriber_names_and_types_by_node(name, '/')),
                ('reply', node.get_service_names_and_types_by_node(name, '/')),
                ('request', node.get_client_names_and_types_by_node(name, '/')),
            )
            for topic, _ in names
        }

    allowed = permissions()
    nodes = {'source', 'detector', 'tracker', 'visualizer', 'metrics', 'gateway'}
    assert set(allowed) == {*nodes, 'perception'}
    graph.until(lambda: ('subscribe', '/tracks') in used('visualizer'), 'the visualizer')
    for name in nodes:
        assert set(allowed[name]) == {name}
        graph.until(lambda name=name: ('publish', '/rosout') in used(name), name)
        assert used(name) <= allowed[name][name], name
        assert allowed[name][name] - used(name) <= ELSEWHERE, name
        assert allowed['perception'][name] == allowed[name][name]
    assert set(allowed['perception']) == {*nodes, 'perception'}
    assert ('subscribe', '/image_raw') in allowed['perception']['perception']


@pytest.mark.parametrize('node', ['perception', 'tracker'])
def test_without_its_keys_a_secured_node_does_not_start(graph, tmp_path, monkeypatch, node):
    monkeypatch.setenv('ROS_SECURITY_ENABLE', 'true')
    monkeypatch.setenv('ROS_SECURITY_STRATEGY', 'Enforce')
    monkeypatch.setenv('ROS_SECURITY_KEYSTORE', str(tmp_path))
    process = graph.run(node)
    output, _ = process.communicate(timeout=30.0)
    assert process.returncode == 1
    assert 'SECURITY ERROR' in output
    assert str(tmp_path) in output
    assert 'Traceback' not in output
    graph.processes.clear()
