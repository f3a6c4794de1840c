"""The CPU image, built and run as compose.yaml runs it: on request, because it takes minutes.

    EDGE_PERCEPTION_TEST_IMAGE=build pytest test/docker/test_image.py
    EDGE_PERCEPTION_TEST_IMAGE=localhost/edge-perception pytest test/docker/test_image.py

The first builds the image, the second tests one that podman has. podman is a container engine
that needs no service; runc is used where it is installed, because crun refuses old cgroups. The
base is EDGE_PERCEPTION_TEST_BASE; without it a Debian is made by mmdebstrap, which needs root.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAMS = Path(sys.executable).parent
OBSERVER = REPOSITORY / 'model_tools' / 'observe_graph.py'
WANTED = os.environ.get('EDGE_PERCEPTION_TEST_IMAGE', '')
CLIP = '/opt/edge_perception/install/edge_perception/share/edge_perception/data/pedestrians.mp4'
BUILD_TIMEOUT_S = 1800
DEADLINE_S = 60.0
PORT = 8300 + os.getpid() % 500
TOKEN = 'a-token-of-this-test'
# Whoever shares /dev/shm with the container must be this user; root would not do.
UID, GID = (1000, 1000) if os.getuid() == 0 else (os.getuid(), os.getgid())

pytestmark = [
    pytest.mark.skipif(not shutil.which('podman'), reason='podman is not installed'),
    pytest.mark.skipif(
        not WANTED, reason='image: building takes minutes, set EDGE_PERCEPTION_TEST_IMAGE=build'
    ),
    pytest.mark.timeout(BUILD_TIMEOUT_S + 300),
]


def podman(*arguments: str | Path, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run podman and take what it prints."""
    runtime = ['--runtime', 'runc'] if shutil.which('runc') else []
    return subprocess.run(
        ['podman', *runtime, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )


def run_options(domain_id: int) -> list[str]:
    """What compose.yaml says, as options of `podman run`."""
    compose = [PROGRAMS / 'docker-compose', '--file', REPOSITORY / 'docker' / 'compose.yaml']
    service = json.loads(
        subprocess.run(
            [*compose, 'config', '--format', 'json'],
            env={**os.environ, 'EDGE_PERCEPTION_UID': str(UID), 'EDGE_PERCEPTION_GID': str(GID)},
            capture_output=True,
            check=True,
        ).stdout
    )['services']['perception']
    options = ['--user', service['user'], '--network', service['network_mode']]
    options += ['--ipc', service['ipc'], '--read-only', '--read-only-tmpfs=false']
    for name in ('tmpfs', 'cap_drop', 'security_opt'):
        for value in service[name]:
            # podman knows no value for this one.
            options += [f'--{name.replace("_", "-")}', str(value).removesuffix(':true')]
    for volume in service['volumes']:
        options += ['--volume', f'{volume["source"]}:{volume["target"]}:ro']
    options += ['--env', f'ROS_DOMAIN_ID={domain_id}', '--env', f'EDGE_PERCEPTION_TOKEN={TOKEN}']
    options += ['--env', f'EDGE_PERCEPTION_HEALTH_URL=http://127.0.0.1:{PORT}/health']
    if UID != 1000 or os.getuid():
        options += ['--userns', 'keep-id']
    # podman asks for more than an unprivileged parent may give.
    return [*options, '--ulimit', 'nofile=1024:1024', '--ulimit', 'nproc=1000:1000']


def make_base(folder: Path) -> str:
    """A Debian with nothing in it, where no registry can be asked."""
    if not shutil.which('mmdebstrap') or os.getuid():
        pytest.skip('mmdebstrap is not installed, or this is not root: EDGE_PERCEPTION_TEST_BASE')
    tag = 'localhost/debian:bookworm-slim'
    if podman('image', 'exists', tag).returncode == 0:
        return tag
    archive = folder / 'base.tar'
    subprocess.run(['mmdebstrap', '--quiet', '--variant=minbase', 'bookworm', archive], check=True)
    result = podman('import', archive, tag, timeout_s=300)
    archive.unlink()
    assert result.returncode == 0, result.stderr
    return tag


def pip_settings(folder: Path) -> list[str]:
    """Build options that let pip reach its index as it does here."""
    lines = []
    options = []
    for key in ('cert', 'index-url'):
        for name in (':env:', 'global'):
            command = [sys.executable, '-m', 'pip', 'config', 'get', f'{name}.{key}']
            value = subprocess.run(command, capture_output=True, text=True).stdout.strip()
            if value and not any(line.startswith(key) for line in lines):
                if key == 'cert':
                    options += ['--secret', f'id=pip_cert,src={value}']
                    value = '/run/secrets/pip_cert'
                lines.append(f'{key} = {value}')
    path = folder / 'pip.conf'
    path.write_text('\n'.join(['[global]', *lines, '']))
    return [*options, '--secret', f'id=pip_conf,src={path}']


@pytest.fixture(scope='module')
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of the image to test, built if that is wanted."""
    if WANTED != 'build':
        return WANTED
    folder = tmp_path_factory.mktemp('image')
    base = os.environ.get('EDGE_PERCEPTION_TEST_BASE') or make_base(folder)
    tag = 'localhost/edge-perception-test'
    result = podman(
        *('build', '--isolation', 'chroot', '--network', 'host', '--format', 'docker'),
        *(*pip_settings(folder), '--build-arg', f'BASE={base}'),
        *('--file', REPOSITORY / 'docker' / 'Dockerfile', '--tag', tag, REPOSITORY),
        timeout_s=BUILD_TIMEOUT_S,
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return tag


@pytest.fixture(scope='module')
def domain_id(new_domain_id: Callable[[], int]) -> int:
    """A ROS domain for this module."""
    return new_domain_id()


@pytest.fixture(scope='module')
def container(image: str, domain_id: int) -> Iterator[str]:
    """The whole pipeline on the demo clip, running in a container."""
    name = f'edge-perception-test-{os.getpid()}'
    result = podman(
        *('run', '--detach', '--name', name, *run_options(domain_id), image),
        *('--ros-args', '-p'),  # options alone go to `perception`
        'perception:members:=source,detector,tracker,visualizer,metrics,gateway',
        *('-p', f'source:source:={CLIP}', '-p', 'source:loop:=true'),
        *('-p', 'detector:model_path:=/models/person_416.onnx'),
        *('-p', f'gateway:port:={PORT}'),
    )
    assert result.returncode == 0, result.stderr
    try:
        yield name
    finally:
        podman('rm', '--force', name)


def execute(container: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the running container, as its user."""
    return podman('exec', container, *command)


def until(condition: Callable[[], Any], what: str, container: str) -> Any:
    """Wait for a condition and return its value."""
    end_s = time.monotonic() + DEADLINE_S
    waiting = threading.Event()
    while not (value := condition()):
        if time.monotonic() > end_s:
            pytest.fail(
                f'waited {DEADLINE_S:.0f} s for {what}: {podman("logs", container).stderr}'
            )
        waiting.wait(0.2)
    return value


def test_a_subscriber_outside_receives_tracks_of_every_image(
    container: str, domain_id: int
) -> None:
    command: list[str | Path] = [sys.executable, OBSERVER]
    if os.getuid() == 0:
        # The container's user, who may read what root has installed.
        command = [
            *('setpriv', '--reuid', str(UID), '--regid', str(GID), '--clear-groups'),
            *('--inh-caps', '+dac_read_search', '--ambient-caps', '+dac_read_search'),
            *command,
        ]
    environment = {**os.environ, 'ROS_DOMAIN_ID': str(domain_id), 'HOME': '/tmp'}
    observer = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    watchdog = threading.Timer(DEADLINE_S, observer.kill)
    watchdog.start()
    try:
        assert observer.stdout is not None
        said = map(json.loads, observer.stdout)
        messages = []
        for message in said:
            if 'tracks' in message:
                messages.append(message)
                if len(messages) == 50:
                    break
    finally:
        watchdog.cancel()
        observer.send_signal(signal.SIGTERM)
        observer.communicate(timeout=10.0)
    assert len(messages) == 50, podman('logs', container).stdout
    stamps = [message['tracks'] for message in messages]
    steps_s = {round((b - a) / 1e9, 1) for a, b in itertools.pairwise(stamps)}
    assert steps_s == {0.1}, 'an image of the 10 Hz clip has no tracks'
    assert any(len(message['ids']) >= 3 for message in messages)


def test_the_health_check_of_the_image_passes(container: str) -> None:
    check = ('python3', '/opt/edge_perception/docker/healthcheck.py')
    until(lambda: execute(container, *check).returncode == 0, 'health', container)
    configured = podman('inspect', container, '--format', '{{json .Config.Healthcheck.Test}}')
    assert json.loads(configured.stdout)[1:] == list(check)
    without_token = podman('exec', '--env', 'EDGE_PERCEPTION_TOKEN=', container, *check)
    assert '401' in without_token.stdout


def test_the_gateway_answers_outside_who_has_the_token(container: str) -> None:
    url = f'http://127.0.0.1:{PORT}/tracks'
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with pytest.raises(urllib.error.HTTPError, match='401'):
        opener.open(url, timeout=10.0)
    request = urllib.request.Request(url, headers={'Authorization': f'Bearer {TOKEN}'})
    assert 'tracks' in json.load(opener.open(request, timeout=10.0))


def test_it_is_no_root_and_writes_nowhere_but_in_tmp(container: str) -> None:
    ids = execute(container, 'sh', '-c', 'id -u; id -g; grep CapEff /proc/1/status')
    assert ids.stdout.split() == [str(UID), str(GID), 'CapEff:', '0' * 16]
    for folder in ('/', '/opt/edge_perception', '/usr/bin', '/models', '/var/log'):
        result = execute(container, 'touch', f'{folder}/written')
        assert result.returncode, folder
    assert 'Read-only file system' in execute(container, 'touch', '/written').stderr
    assert execute(container, 'touch', '/tmp/written').returncode == 0


def test_the_image_holds_neither_compilers_nor_torch_nor_traces_of_the_build(
    container: str,
) -> None:
    script = (
        'for program in gcc g++ cc cmake make; do command -v $program; done; '
        'ls -d /opt/edge_perception/src /opt/edge_perception/build /run/secrets '
        '/etc/pip.conf /opt/edge_perception/.venv/lib/python3*/site-packages/torch '
        '/opt/edge_perception/.venv/include; true'
    )
    assert execute(container, 'sh', '-c', script).stdout == ''


def test_the_model_folder_is_mounted(container: str) -> None:
    assert 'person_416.onnx' in execute(container, 'ls', '/models').stdout


def test_any_node_and_any_command_run(image: str, domain_id: int) -> None:
    options = ['run', '--rm', *run_options(domain_id)]
    refused = podman(*options, image, 'tracker', '--ros-args', '-p', 'tracker:=none')
    assert refused.returncode == 1
    assert 'hybrid, iou, sort' in refused.stdout + refused.stderr
    command = ('python3', '-c', 'import rclpy, vision_msgs.msg; print("both")')
    assert podman(*options, image, *command).stdout == 'both\n'


def test_stop_ends_it_cleanly(container: str) -> None:
    """The last test of this module: the container is gone afterwards."""
    started_s = time.monotonic()
    assert podman('stop', '--time', '10', container).returncode == 0
    assert time.monotonic() - started_s < 8.0, 'it was killed'
    state = podman('inspect', container, '--format', '{{.State.ExitCode}} {{.State.OOMKilled}}')
    assert state.stdout.strip() == '0 false'
    logs = podman('logs', container)
    assert 'Traceback' not in logs.stdout + logs.stderr
