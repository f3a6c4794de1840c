"""What `make setup` leaves behind, what it says when it cannot, and how CI judges a run."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).resolve().parent.parent
REQUIREMENTS = REPOSITORY / 'requirements'
SETUP_SCRIPT = REQUIREMENTS / 'setup_workspace.py'
STAMPS = REPOSITORY / '.venv' / '.setup'
# The interpreter outside the virtual environment.
BASE_PYTHON = str(Path(sys.base_prefix, 'bin', f'python3.{sys.version_info.minor}'))

only_made_by_setup = pytest.mark.skipif(
    not STAMPS.is_dir(), reason='ROS installation: the workspace was built without make setup'
)
only_wheels = pytest.mark.skipif(
    not (STAMPS / 'ros').is_file() or not (STAMPS / 'ros').read_text().startswith('wheels'),
    reason='ROS installation: its own packages are used',
)

# REP-2016 type hashes of vision_msgs 4.1.1, computed from the original's interface files.
VISION_MSGS_HASHES = {
    'BoundingBox2D': '008eacbb0cf8f26e83795547bed013eec3675485ef386ec056d80eaaf1c1ce2f',
    'BoundingBox2DArray': '2464e82838009386d371b523211c21c91d74d313fcdd6788223c531d621cf691',
    'BoundingBox3D': 'bbb73a65c163d7f9bb29009c7bde9f7faa576bd2d23299c4511d19230dab4698',
    'BoundingBox3DArray': 'a81938db9576b10c2eecd7c5a5da3eac496efd00221b25ed051dfbc81fb56da6',
    'Classification': 'f74db28d0eaef3afb78f48bf2161cd709a1383a0309d3454383b25be11345143',
    'Detection2D': '0d12b69df5c593b3455b7346fac8205437a7d4bcb09b9e0e0b2dde787ded38ea',
    'Detection2DArray': '214274120007f4a683866481336b70310268cfa107aebe9d594a6acf75bda968',
    'Detection3D': 'ddd703be132ab0b69d33121f1bb034132bfbb3b0ac5f9fb1516005ba1c8a265b',
    'Detection3DArray': '793f5eab9595ac1c0da07873cc859db42eae51f0ee76056db8562515d830e018',
    'LabelInfo': '3d37df4015cdf660cc851c51897f2acd957e1ca6205ba0a99aebffb9406b0783',
    'ObjectHypothesis': '51da43cec11c01957a64d1e05a24acd18aae7745ec30b74348ad5f6d634f7f90',
    'ObjectHypothesisWithPose': '41c12344c0396c48b81df12467c192d99b2a0eb1463c5c37194e4223251c80bc',
    'Point2D': 'eab0e83f44ab4de92ceaf76dd7d0e7638f2bdd1d16ffbe16c7a136c48e407247',
    'Pose2D': 'b0b5d1d7b4c20dd4fcde3ed1d4b289a919290572007d67a97043814db25d3648',
    'VisionClass': '1e4a11f0fed50b5623cb8ff26ca0e37952a48a9c074d16f804b44e9164c2037a',
    'VisionInfo': '95d3116a17484ad91c9a2686e1d54890bbfc3ff6c6a2de137738c4950d45d284',
}


def requirements(name: str) -> list[Requirement]:
    """The lines of a requirements file that apply to this Python."""
    lines = (line.split('#')[0].strip() for line in (REQUIREMENTS / name).read_text().splitlines())
    found = [Requirement(line) for line in lines if line]
    return [item for item in found if item.marker is None or item.marker.evaluate()]


@pytest.fixture(scope='module')
def setup_workspace() -> ModuleType:
    """The setup script as a module."""
    spec = importlib.util.spec_from_file_location('setup_workspace', SETUP_SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def bare_workspace(tmp_path: Path) -> Path:
    """What the setup script needs to begin with, without any environment."""
    for folder in ('requirements', 'src/vendor'):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder)
    return tmp_path


def run_setup(workspace: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """The setup script as make calls it, without a ROS distribution and without a compiler."""
    tools = workspace / 'tools'
    tools.mkdir()
    return subprocess.run(
        [BASE_PYTHON, 'requirements/setup_workspace.py'],
        cwd=workspace,
        env={'PATH': str(tools), 'HOME': str(workspace), **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )


@only_wheels
def test_vision_msgs_has_the_types_of_the_original() -> None:
    definitions = REPOSITORY / '.venv' / 'share' / 'vision_msgs' / 'msg'
    hashes = {}
    for path in definitions.glob('*.json'):
        for entry in json.loads(path.read_text())['type_hashes']:
            package, _, name = entry['type_name'].split('/')
            if package == 'vision_msgs':
                hashes[name] = entry['hash_string'].removeprefix('RIHS01_')
    assert hashes == VISION_MSGS_HASHES


@pytest.mark.parametrize('path', sorted(REQUIREMENTS.glob('*.txt')), ids=lambda path: path.name)
def test_every_requirement_is_pinned(path: Path) -> None:
    found = requirements(path.name)
    assert found
    loose = [str(item) for item in found if [part.operator for part in item.specifier] != ['==']]
    assert loose == []


def test_files_that_are_installed_together_agree() -> None:
    pins: dict[str, set[str]] = {}
    for path in REQUIREMENTS.glob('*.txt'):
        if not path.name.startswith('ros-'):
            for item in requirements(path.name):
                pins.setdefault(item.name.lower(), set()).add(str(item.specifier))
    assert {name: pinned for name, pinned in pins.items() if len(pinned) > 1} == {}


@only_wheels
def test_installed_versions_are_the_pinned_ones() -> None:
    release = (STAMPS / 'ros').read_text().split()[1]
    files = [f'ros-{release}.txt', 'runtime.txt', 'build.txt', 'dev.txt', 'dev-no-deps.txt']
    if (STAMPS / 'training').is_file():
        files += ['training.txt', 'training-no-deps.txt']
    wrong = {
        item.name: metadata.version(item.name)
        for name in files
        for item in requirements(name)
        if metadata.version(item.name) not in item.specifier
    }
    assert wrong == {}


@only_wheels
def test_no_second_opencv_beside_the_headless_one() -> None:
    """opencv-python needs libGL, which a fresh machine lacks, and overwrites the same files."""
    names = {dist.metadata['Name'].lower() for dist in metadata.distributions()}
    assert {name for name in names if name.startswith('opencv')} == {'opencv-python-headless'}


@only_made_by_setup
def test_a_second_setup_has_nothing_to_do_within_10_s() -> None:
    script = [sys.executable, str(SETUP_SCRIPT)]
    result = subprocess.run(script, capture_output=True, text=True, timeout=10)
    assert (result.returncode, result.stdout, result.stderr) == (0, '', '')


def test_missing_system_packages_are_named_with_the_line_that_installs_them(
    bare_workspace: Path,
) -> None:
    result = run_setup(bare_workspace)
    assert result.returncode == 1
    assert 'missing: gcc, g++, cmake' in result.stderr
    install = next(line for line in result.stderr.splitlines() if 'apt-get' in line)
    assert install.split()[:4] == ['sudo', 'apt-get', 'install', '-y']
    assert {'gcc', 'g++', 'cmake'} <= set(install.split())
    assert not (bare_workspace / '.venv').exists()


def test_only_what_is_missing_is_named(bare_workspace: Path) -> None:
    (bare_workspace / 'bin').mkdir()
    for name in ('gcc', 'g++'):
        (bare_workspace / 'bin' / name).symlink_to('/bin/true')
    # clean_environment takes paths of the workspace off the PATH, so these lie beside it.
    tools = bare_workspace.with_name(bare_workspace.name + '_tools')
    (bare_workspace / 'bin').rename(tools)
    result = run_setup(bare_workspace, PATH=str(tools))
    assert 'missing: cmake' in result.stderr
    assert 'gcc' not in result.stderr


@pytest.mark.parametrize(
    ('variables', 'message'),
    [
        ({'ROS_WHEELS': 'foxy'}, 'ROS_WHEELS=foxy: choose one of jazzy, kilted'),
        # Sourced, but no Python can import its rclpy.
        ({'ROS_DISTRO': 'rolling', 'AMENT_PREFIX_PATH': '/opt/ros/rolling'}, 'ros-rolling-rclpy'),
    ],
)
def test_unusable_choice_of_ros_is_one_clear_message(
    bare_workspace: Path, variables: dict[str, str], message: str
) -> None:
    result = run_setup(bare_workspace, **variables)
    assert result.returncode == 1
    assert message in result.stderr
    assert result.stderr.startswith('setup: ') and 'Traceback' not in result.stderr


def test_other_architectures_are_told_that_there_are_no_wheels(
    setup_workspace: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('platform.machine', lambda: 'aarch64')
    with pytest.raises(setup_workspace.SetupError, match='no ROS 2 wheels for aarch64'):
        setup_workspace.Ros({})


def test_a_step_is_done_again_after_a_change_or_an_interruption(
    setup_workspace: ModuleType, tmp_path: Path
) -> None:
    def due(inputs: list[str], error: type[BaseException] | None = None) -> bool:
        try:
            with setup_workspace.Step(tmp_path / 'stamps' / 'x', inputs, 'a step') as step:
                if error is not None:
                    raise error
        except KeyboardInterrupt:
            pass
        return bool(step.due)

    assert due(['a'])
    assert not due(['a'])
    assert due(['b'])
    assert not due(['b'])
    assert due(['c'], KeyboardInterrupt)
    assert due(['b'])


def test_environment_of_this_workspace_is_not_taken_for_a_ros_distribution(
    setup_workspace: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = REPOSITORY / '.venv'
    monkeypatch.setenv('AMENT_PREFIX_PATH', str(inside))
    monkeypatch.setenv('PYTHONPATH', f'{inside}/lib:/opt/ros/jazzy/lib')
    monkeypatch.setenv('_ROS_WHEELS_BOOTSTRAP_COMPLETE', '1')
    environment = setup_workspace.clean_environment()
    assert 'AMENT_PREFIX_PATH' not in environment
    assert environment['PYTHONPATH'] == '/opt/ros/jazzy/lib'
    assert '_ROS_WHEELS_BOOTSTRAP_COMPLETE' not in environment


def test_base_python_is_found_from_a_half_removed_environment(
    setup_workspace: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`rm -rf .venv` that was stopped leaves an interpreter that takes itself for the base."""
    link = tmp_path / '.venv' / 'bin' / 'python'
    link.parent.mkdir(parents=True)
    link.symlink_to(BASE_PYTHON)
    monkeypatch.setattr(setup_workspace, 'VENV', tmp_path / '.venv')
    monkeypatch.setattr(sys, 'executable', str(link))
    monkeypatch.setattr(sys, 'prefix', sys.base_prefix)
    assert setup_workspace.base_python() == BASE_PYTHON


@pytest.mark.parametrize('shell', filter(shutil.which, ['sh', 'bash', 'zsh']))
def test_local_setup_puts_the_environment_on_the_paths_once(
    setup_workspace: ModuleType, tmp_path: Path, shell: str
) -> None:
    script = tmp_path / f'local_setup.{shell}'
    script.write_text(setup_workspace.LOCAL_SETUP.format(venv=tmp_path))
    show = 'echo "$AMENT_PREFIX_PATH $CMAKE_PREFIX_PATH $PATH ${_ROS_WHEELS_BOOTSTRAP_COMPLETE-}"'
    result = subprocess.run(
        [str(shutil.which(shell)), '-uec', f'. {script}; . {script}; {show}'],
        env={
            'PATH': '/usr/bin',
            'AMENT_PREFIX_PATH': '/opt/ros/jazzy',
            '_ROS_WHEELS_BOOTSTRAP_COMPLETE': '1',
        },
        capture_output=True,
        text=True,
    )
    expected = f'{tmp_path}:/opt/ros/jazzy {tmp_path} {tmp_path}/bin:/usr/bin'
    assert (result.stdout.strip(), result.stderr) == (expected, '')


@pytest.mark.parametrize(
    ('tests', 'accepted', 'message'),
    [
        ('def test_a(): pass', True, ''),
        ('def test_a(): pass\ndef test_b(): pytest.skip("GPU: none here")', True, ''),
        ('def test_a(): pass\ndef test_b(): pytest.importorskip("torch_is_missing")', False,
         'test_b: could not import'),
        ('def test_a(): pytest.skip("GPU: none here")', False, 'no test ran'),
        ('', False, 'no test ran'),
        ('pytest.skip("torch is missing", allow_module_level=True)', False,
         'test_x: torch is missing'),
    ],
    ids=['passed', 'allowed skip', 'avoidable skip', 'all skipped', 'empty', 'module skipped'],
)  # fmt: skip
def test_ci_refuses_avoidable_skips_and_empty_runs(
    tmp_path: Path, tests: str, accepted: bool, message: str
) -> None:
    (tmp_path / 'test_x.py').write_text(f'import pytest\n{tests}\n')
    report = tmp_path / 'junit.xml'
    pytest_command = [sys.executable, '-m', 'pytest', '-q', f'--junit-xml={report}', 'test_x.py']
    subprocess.run(pytest_command, cwd=tmp_path, capture_output=True)
    judge = [sys.executable, str(REPOSITORY / '.ci' / 'check_report.py'), str(report)]
    result = subprocess.run(judge, capture_output=True, text=True)
    assert (result.returncode == 0) == accepted
    assert message in result.stderr


def test_make_lists_its_targets() -> None:
    result = subprocess.run(
        ['make'],
        cwd=REPOSITORY,
        env=dict(os.environ, MAKEFLAGS=''),
        capture_output=True,
        text=True,
    )
    listed = {line.split()[0] for line in result.stdout.splitlines()}
    wanted = {'help', 'setup', 'setup-training', 'demo', 'test', 'bench', 'format', 'clean'}
    assert wanted <= listed
