"""Writes what is derived from the parameters of the nodes: config/perception.yaml and the README.

    python model_tools/parameter_tables.py          # write both anew
    python model_tools/parameter_tables.py --check  # exit status 1 when they are not current

In the README the table of a node stands between `<!-- parameters: NODE -->` and `<!-- end -->`.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from pathlib import Path

import yaml

from edge_perception.nodes.detector import DetectorParameters
from edge_perception.nodes.gateway import GatewayParameters
from edge_perception.nodes.metrics import MetricsParameters
from edge_perception.nodes.perception import PerceptionParameters
from edge_perception.nodes.source import SourceParameters
from edge_perception.nodes.tracker import TrackerParameters
from edge_perception.nodes.visualizer import VisualizerParameters
from edge_perception.ros.parameters import ParameterSpec, markdown_table, specs

REPOSITORY = Path(__file__).resolve().parent.parent
README = REPOSITORY / 'README.md'
CONFIG = REPOSITORY / 'config' / 'perception.yaml'

NODE_PARAMETERS: dict[str, type] = {
    'perception': PerceptionParameters,
    'source': SourceParameters,
    'detector': DetectorParameters,
    'tracker': TrackerParameters,
    'visualizer': VisualizerParameters,
    'metrics': MetricsParameters,
    'gateway': GatewayParameters,
}

CONFIG_HEADER = """\
# Every parameter of every node, with its default. Written by model_tools/parameter_tables.py.
#
# Copy this file, keep what you change, and give it to the launch files as params_file:=... or to
# an executable as `--ros-args --params-file ...`. `/**/` stands for any namespace; a section such
# as `/front/detector` speaks of one node only.
# Parameters marked [live] may be changed while a node runs (`ros2 param set`), the others take
# effect when it is configured.
"""


def config_text() -> str:
    """The whole of config/perception.yaml."""
    parts = [CONFIG_HEADER]
    for node, parameters_type in NODE_PARAMETERS.items():
        parts.append(f'\n/**/{node}:\n  ros__parameters:\n')
        parts.extend(_config_entry(spec) for spec in specs(parameters_type))
    return ''.join(parts)


def _config_entry(spec: ParameterSpec) -> str:
    limits = spec.range_text()
    comment = (
        spec.description + (f' ({limits})' if limits else '') + (' [live]' if spec.live else '')
    )
    lines = textwrap.wrap(comment, 93, initial_indent='    # ', subsequent_indent='    # ')
    value = yaml.safe_dump({spec.name: spec.default}, default_flow_style=False).strip()
    return '\n'.join([*lines, f'    {value}']) + '\n'


def readme_text(text: str) -> str:
    """The README with the tables between its markers written anew."""

    def table(match: re.Match[str]) -> str:
        rows = markdown_table(NODE_PARAMETERS[match['node']])
        return f'{match["start"]}\n{rows}{match["end"]}'

    pattern = r'(?P<start><!-- parameters: (?P<node>\w+) -->)\n.*?(?P<end><!-- end -->)'
    return re.sub(pattern, table, text, flags=re.DOTALL)


def main() -> int:
    """Write or check; returns the exit status."""
    parser = argparse.ArgumentParser(description='Write the parameters into config and README.')
    parser.add_argument('--check', action='store_true', help='only say what is not current')
    options = parser.parse_args()
    stale = False
    for path, text in ((CONFIG, config_text()), (README, readme_text(README.read_text()))):
        if path.is_file() and path.read_text() == text:
            continue
        stale = True
        if options.check:
            print(f'{path.relative_to(REPOSITORY)} is not current: run {sys.argv[0]}')
        else:
            path.write_text(text)
    return 1 if options.check and stale else 0


if __name__ == '__main__':
    sys.exit(main())
