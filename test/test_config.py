"""config/ and the tables of the README say what the nodes say."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

pytest.importorskip('rclpy', reason='rclpy is not there: run make setup')

import parameter_tables
from parameter_tables import NODE_PARAMETERS

from edge_perception.nodes.perception import MEMBERS
from edge_perception.ros.parameters import specs

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIG = yaml.safe_load((REPOSITORY / 'config' / 'perception.yaml').read_text())


def test_every_node_has_its_section() -> None:
    assert list(CONFIG) == [f'/**/{node}' for node in NODE_PARAMETERS]
    assert set(NODE_PARAMETERS) == {'perception', *MEMBERS}


@pytest.mark.parametrize('node', NODE_PARAMETERS)
def test_the_section_has_every_parameter_with_its_default(node: str) -> None:
    section = CONFIG[f'/**/{node}']
    assert list(section) == ['ros__parameters']
    written = {name: (type(value), value) for name, value in section['ros__parameters'].items()}
    declared = {spec.name: (spec.type, spec.default) for spec in specs(NODE_PARAMETERS[node])}
    assert written == declared


@pytest.mark.parametrize('node', NODE_PARAMETERS)
def test_every_parameter_is_explained_and_allows_its_default(node: str) -> None:
    for spec in specs(NODE_PARAMETERS[node]):
        assert len(spec.description.split()) > 1
        spec.check(spec.default)


def test_config_is_what_the_tool_writes() -> None:
    assert parameter_tables.CONFIG.read_text() == parameter_tables.config_text(), (
        'run model_tools/parameter_tables.py'
    )


def test_the_tables_of_the_readme_are_current() -> None:
    text = parameter_tables.README.read_text()
    for node in NODE_PARAMETERS:
        assert f'<!-- parameters: {node} -->' in text
    assert parameter_tables.readme_text(text) == text, 'run model_tools/parameter_tables.py'


def test_a_stale_table_is_written_anew() -> None:
    stale = 'before\n<!-- parameters: tracker -->\n| old |\n<!-- end -->\nafter\n'
    fresh = parameter_tables.readme_text(stale)
    assert fresh.startswith('before\n<!-- parameters: tracker -->\n| parameter |')
    assert "| `tracker` | `'hybrid'` |" in fresh
    assert fresh.endswith('<!-- end -->\nafter\n')


def test_rviz_shows_topics_that_are_published() -> None:
    rviz = yaml.safe_load((REPOSITORY / 'config' / 'perception.rviz').read_text())
    displays = rviz['Visualization Manager']['Displays']
    topics = {display['Topic']['Value']: display['Class'] for display in displays}
    assert topics == {
        'image_annotated': 'rviz_default_plugins/Image',
        'image_raw': 'rviz_default_plugins/Image',
    }
