"""Parameters of a node as one frozen dataclass: default, description, range, live or not.

The dataclass is the only place that knows a parameter. From it come the declaration with its
descriptor, the check of a change, and the table in the README.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    ParameterType,
    SetParametersResult,
)
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node
from rclpy.parameter import Parameter

from edge_perception.types import EdgePerceptionError

P = TypeVar('P')

_TYPES = {
    bool: ParameterType.PARAMETER_BOOL,
    int: ParameterType.PARAMETER_INTEGER,
    float: ParameterType.PARAMETER_DOUBLE,
    str: ParameterType.PARAMETER_STRING,
}
_TYPE_EXAMPLES = {bool: 'true', int: '5', float: '0.5', str: "'text'"}


class ParameterError(EdgePerceptionError, ValueError):
    """A parameter has a wrong type or a value outside its range."""


@dataclass(frozen=True)
class ParameterSpec:
    """Everything a user can know of one parameter."""

    name: str
    type: type
    default: Any
    description: str
    minimum: float | None
    maximum: float | None
    choices: tuple[Any, ...]
    live: bool

    def check(self, value: Any) -> None:
        """Raise ParameterError when `value` is outside the range or no choice."""
        if self.choices and value not in self.choices:
            allowed = ', '.join(str(choice) for choice in self.choices)
            raise ParameterError(f'{self.name}: {value!r} is not one of {allowed}')
        low = self.minimum is not None and not value >= self.minimum
        high = self.maximum is not None and not value <= self.maximum
        if low or high:
            raise ParameterError(f'{self.name}: {value!r} is not in {self.range_text()}')

    def range_text(self) -> str:
        """The range or the choices as a person reads them; empty when there is none."""
        if self.choices:
            return ', '.join(str(choice) for choice in self.choices)
        if self.minimum is None and self.maximum is None:
            return ''
        if self.maximum is None:
            return f'>= {self.minimum:g}'
        if self.minimum is None:
            return f'<= {self.maximum:g}'
        return f'{self.minimum:g} to {self.maximum:g}'

    def descriptor(self) -> ParameterDescriptor:
        """The ROS descriptor, as `ros2 param describe` shows it."""
        descriptor = ParameterDescriptor(
            name=self.name,
            type=_TYPES[self.type],
            description=self.description,
            additional_constraints='' if self.live else 'takes effect at configure',
        )
        if self.choices:
            descriptor.additional_constraints = f'one of {self.range_text()}'
        elif self.minimum is not None or self.maximum is not None:
            # A range message has no open end, so the widest value of the type stands in.
            if self.type is int:
                descriptor.integer_range = [
                    IntegerRange(
                        from_value=-(2**31) if self.minimum is None else int(self.minimum),
                        to_value=2**31 - 1 if self.maximum is None else int(self.maximum),
                    )
                ]
            else:
                descriptor.floating_point_range = [
                    FloatingPointRange(
                        from_value=-1e12 if self.minimum is None else float(self.minimum),
                        to_value=1e12 if self.maximum is None else float(self.maximum),
                    )
                ]
        return descriptor


def parameter(
    default: Any,
    description: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: Sequence[Any] = (),
    live: bool = False,
) -> Any:
    """A field of a parameter dataclass.

    Args:
        default: bool, int, float or str; its type is the parameter's type.
        description: one line, with the unit where there is one.
        minimum: smallest allowed value.
        maximum: largest allowed value.
        choices: the only allowed values.
        live: a change takes effect at once; otherwise at the next configure.
    """
    return dataclasses.field(
        default=default,
        metadata={
            'description': description,
            'minimum': minimum,
            'maximum': maximum,
            'choices': tuple(choices),
            'live': live,
        },
    )


def comma_separated(text: str) -> list[str]:
    """The parts of a parameter that holds several, without spaces around them; no empty ones."""
    return [part for each in text.split(',') if (part := each.strip())]


def specs(parameters_type: type) -> list[ParameterSpec]:
    """The parameters of a dataclass, in order."""
    types = typing.get_type_hints(parameters_type)
    return [
        ParameterSpec(name=item.name, type=types[item.name], default=item.default, **item.metadata)
        for item in dataclasses.fields(parameters_type)
    ]


def declare(node: Node, parameters_type: type[P]) -> P:
    """Declare every parameter on `node` and return the values in force.

    Raises:
        ParameterError: a value given by the user has a wrong type or is out of range.
    """
    values = {}
    for spec in specs(parameters_type):
        try:
            value = node.declare_parameter(spec.name, spec.default, spec.descriptor()).value
        except (InvalidParameterTypeException, InvalidParameterValueException) as error:
            # rclpy's own texts name neither the bounds nor an example.
            given = node._parameter_overrides[spec.name].value
            wanted = (
                f'{given!r} is not in {spec.range_text()}'
                if type(given) is spec.type
                else f'expected {spec.type.__name__} such as {_TYPE_EXAMPLES[spec.type]}, '
                f'got {given!r}'
            )
            raise ParameterError(f'{spec.name}: {wanted}') from error
        spec.check(value)
        values[spec.name] = value
    return parameters_type(**values)


class LiveParameters:
    """Checks changes of the parameters of a node and hands the accepted ones on.

    Args:
        node: the node, with everything of `current` declared.
        current: the values in force.
        changed: called with the new dataclass when all changes of one request are valid; may
            raise EdgePerceptionError to refuse them.
        may_configure: whether parameters that are not live may change now.
    """

    def __init__(
        self,
        node: Node,
        current: Any,
        *,
        changed: Callable[[Any], None],
        may_configure: Callable[[], bool],
    ) -> None:
        self.current = current
        self._specs = {spec.name: spec for spec in specs(type(current))}
        self._changed = changed
        self._may_configure = may_configure
        node.add_on_set_parameters_callback(self._on_set)

    def _on_set(self, parameters: Iterable[Parameter]) -> SetParametersResult:
        changes = {}
        try:
            for item in parameters:
                spec = self._specs.get(item.name)
                if spec is None:
                    continue  # a parameter of rclpy itself, such as use_sim_time
                spec.check(item.value)
                if not spec.live and not self._may_configure():
                    raise ParameterError(
                        f'{spec.name} takes effect at configure: '
                        'deactivate and clean up the node first'
                    )
                changes[spec.name] = item.value
            if changes:
                updated = dataclasses.replace(self.current, **changes)
                self._changed(updated)
                self.current = updated
        except EdgePerceptionError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)


def markdown_table(parameters_type: type) -> str:
    """The table of the parameters of one node, for the README."""
    lines = ['| parameter | default | range | live | meaning |', '|---|---|---|---|---|']
    for spec in specs(parameters_type):
        default = str(spec.default).lower() if spec.type is bool else repr(spec.default)
        lines.append(
            f'| `{spec.name}` | `{default}` | {spec.range_text()} | '
            f'{"yes" if spec.live else ""} | {spec.description} |'
        )
    return '\n'.join(lines) + '\n'
