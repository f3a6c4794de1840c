"""Parameters: declared from one dataclass, checked at start and at every change."""

from dataclasses import dataclass

import pytest

pytest.importorskip('rclpy', reason='rclpy is not there: run make setup')

import rclpy
from rcl_interfaces.msg import ParameterType
from rclpy.context import Context
from rclpy.node import Node
from rclpy.parameter import Parameter

from edge_perception.ros.parameters import (
    LiveParameters,
    ParameterError,
    comma_separated,
    declare,
    markdown_table,
    parameter,
    specs,
)


@dataclass(frozen=True)
class Example:
    rate_hz: float = parameter(10.0, 'images a second', minimum=0.0, maximum=100.0, live=True)
    count: int = parameter(3, 'how many', minimum=1, live=True)
    mode: str = parameter('a', 'which one', choices=('a', 'b'), live=True)
    path: str = parameter('', 'a file')
    enabled: bool = parameter(True, 'whether', live=True)


@pytest.fixture
def context():
    context = Context()
    rclpy.init(args=[], context=context, domain_id=101)
    yield context
    context.try_shutdown()


@pytest.fixture
def make_node(context):
    nodes = []

    def make(**overrides):
        node = Node(
            'example',
            context=context,
            parameter_overrides=[
                Parameter(name, value=value) for name, value in overrides.items()
            ],
        )
        nodes.append(node)
        return node

    yield make
    for node in nodes:
        node.destroy_node()


def test_defaults_and_overrides(make_node):
    assert declare(make_node(), Example) == Example()
    assert declare(make_node(count=7, mode='b'), Example) == Example(count=7, mode='b')


def test_descriptor_carries_description_type_and_range(make_node):
    node = make_node()
    declare(node, Example)
    rate = node.describe_parameter('rate_hz')
    assert rate.description == 'images a second'
    assert rate.type == ParameterType.PARAMETER_DOUBLE
    assert (rate.floating_point_range[0].from_value, rate.floating_point_range[0].to_value) == (
        0.0,
        100.0,
    )
    assert node.describe_parameter('count').integer_range[0].from_value == 1
    assert 'one of a, b' in node.describe_parameter('mode').additional_constraints
    assert 'configure' in node.describe_parameter('path').additional_constraints


@pytest.mark.parametrize(
    ('override', 'message'),
    [
        ({'rate_hz': 101.0}, 'rate_hz: 101.0 is not in 0 to 100'),
        ({'rate_hz': float('nan')}, 'rate_hz: nan is not in 0 to 100'),
        ({'count': 0}, 'count: 0 is not in >= 1'),
        ({'count': 'many'}, "count: expected int such as 5, got 'many'"),
        ({'rate_hz': 5}, 'rate_hz: expected float such as 0.5, got 5'),
        ({'mode': 'c'}, "mode: 'c' is not one of a, b"),
    ],
)
def test_bad_value_at_start_is_one_clear_line(make_node, override, message):
    with pytest.raises(ParameterError) as caught:
        declare(make_node(**override), Example)
    assert str(caught.value) == message


@pytest.fixture
def live(make_node):
    node = make_node()
    accepted = []
    state = {'may_configure': False}
    live = LiveParameters(
        node,
        declare(node, Example),
        changed=accepted.append,
        may_configure=lambda: state['may_configure'],
    )
    return node, live, accepted, state


def test_live_change_reaches_the_node_at_once(live):
    node, parameters, accepted, _ = live
    assert node.set_parameters([Parameter('count', value=9)])[0].successful
    assert parameters.current == Example(count=9)
    assert accepted == [Example(count=9)]


@pytest.mark.parametrize(
    ('name', 'value', 'reason'),
    [
        ('mode', 'c', 'not one of'),
        ('path', 'x', 'takes effect at configure'),
    ],
)
def test_refused_change_says_why_and_changes_nothing(live, name, value, reason):
    node, parameters, accepted, _ = live
    result = node.set_parameters([Parameter(name, value=value)])[0]
    assert not result.successful
    assert reason in result.reason
    assert parameters.current == Example()
    assert accepted == []


def test_value_out_of_range_is_refused_live(live):
    node, parameters, _, _ = live
    assert not node.set_parameters([Parameter('rate_hz', value=1000.0)])[0].successful
    assert parameters.current == Example()


def test_parameter_of_configure_may_change_while_unconfigured(live):
    node, parameters, _, state = live
    state['may_configure'] = True
    assert node.set_parameters([Parameter('path', value='x')])[0].successful
    assert parameters.current.path == 'x'


@pytest.mark.parametrize(
    'text, parts',
    [
        ('', []),
        (' , ,', []),
        ('person', ['person']),
        ('person,traffic light', ['person', 'traffic light']),
        (' b , a,, b ', ['b', 'a', 'b']),  # order and repetition are left to the reader
    ],
)
def test_parts_of_a_parameter_that_holds_several(text, parts):
    assert comma_separated(text) == parts


def test_table_lists_every_parameter():
    table = markdown_table(Example)
    for spec in specs(Example):
        assert f'`{spec.name}`' in table
        assert spec.description in table
    assert '| `rate_hz` | `10.0` | 0 to 100 | yes | images a second |' in table
