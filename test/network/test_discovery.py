"""The settings of docs/deployment.md by which programs on two machines find each other, or not."""

from __future__ import annotations

import json
import queue
import re
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from network_lab import Lab

from edge_perception.ros.transport import PROFILE_VARIABLES, share_folder

REPOSITORY = Path(__file__).resolve().parents[2]
OBSERVER = REPOSITORY / 'model_tools' / 'observe_graph.py'
DEADLINE_S = 40.0
SILENCE_S = 5.0

PEERS = 'ROS_STATIC_PEERS'
RANGE = 'ROS_AUTOMATIC_DISCOVERY_RANGE'


def observer_hears_source(
    lab: Lab, demo_clip: Path, *, wait_s: float, of_camera: Mapping[str, str], of_desk: Mapping
) -> bool:
    """Whether a node on the camera is heard on the desk within a time after both are up."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read(program) -> None:
        try:
            for line in program.stdout:
                lines.put(line)
        except ValueError:  # closed at the end
            pass

    node = [sys.executable, '-m', 'edge_perception.nodes.source', '--ros-args']
    parameters = ['-p', f'source:={json.dumps(str(demo_clip))}', '-p', 'wait_for_subscriber:=true']
    for program in (
        lab.run('desk', [sys.executable, str(OBSERVER)], of_desk),
        lab.run('camera', [*node, *parameters], of_camera),
    ):
        threading.Thread(target=read, args=(program,), daemon=True).start()
    waiting_for = {'ready', 'h264'}  # what the two print when they are up
    end_s = time.monotonic() + DEADLINE_S
    while (left_s := end_s - time.monotonic()) > 0:
        try:
            line = lines.get(timeout=left_s)
        except queue.Empty:
            break
        if '"node": "source"' in line:
            return True
        if waiting_for:
            waiting_for = {word for word in waiting_for if word not in line}
            if not waiting_for:
                end_s = time.monotonic() + wait_s
    assert not waiting_for, f'not up after {DEADLINE_S} s: {waiting_for}'
    return False


def addresses(lab: Lab, *names: str) -> str:
    """As ROS_STATIC_PEERS has them."""
    return ';'.join(lab.addresses[name] for name in names)


def test_on_one_network_they_find_each_other(lab: Lab, demo_clip: Path) -> None:
    assert observer_hears_source(lab, demo_clip, wait_s=DEADLINE_S, of_camera={}, of_desk={})


def test_localhost_keeps_to_the_machine(lab: Lab, demo_clip: Path) -> None:
    only_here = {RANGE: 'LOCALHOST'}
    assert not observer_hears_source(
        lab, demo_clip, wait_s=SILENCE_S, of_camera=only_here, of_desk=only_here
    )


def test_static_peers_are_found_without_multicast(lab: Lab, demo_clip: Path) -> None:
    # It is enough that one of the two names the other.
    assert observer_hears_source(
        lab,
        demo_clip,
        wait_s=DEADLINE_S,
        of_camera={RANGE: 'LOCALHOST', PEERS: addresses(lab, 'robot', 'desk')},
        of_desk={RANGE: 'LOCALHOST'},
    )


def test_a_discovery_server_brings_them_together(lab: Lab, demo_clip: Path) -> None:
    server = lab.run('robot', ['fastdds', 'discovery', '-i', '0', '-l', lab.addresses['robot']])
    for line in server.stdout:
        if 'Server is running' in line:
            break
    else:
        pytest.fail('the discovery server ended')
    variables = {'ROS_DISCOVERY_SERVER': f'{lab.addresses["robot"]}:11811'}
    assert observer_hears_source(
        lab, demo_clip, wait_s=DEADLINE_S, of_camera=variables, of_desk=variables
    )


@pytest.mark.parametrize(('interface', 'is_heard'), [('eth0', True), ('lo', False)])
def test_only_interfaces_of_the_allow_list_are_used(
    lab: Lab, demo_clip: Path, tmp_path: Path, interface: str, is_heard: bool
) -> None:
    text = (share_folder() / 'config' / 'fastdds.xml').read_text()
    allowed = f'<interfaces><allowlist><interface name="{interface}"/></allowlist></interfaces>'
    profile = tmp_path / 'allowed.xml'
    profile.write_text(re.sub(r'(<type>UDPv4</type>)', rf'\1{allowed}', text))
    variables = dict.fromkeys(PROFILE_VARIABLES, str(profile))
    assert is_heard == observer_hears_source(
        lab,
        demo_clip,
        wait_s=DEADLINE_S if is_heard else SILENCE_S,
        of_camera=variables,
        of_desk=variables,
    )
