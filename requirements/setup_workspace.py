#!/usr/bin/env python3
"""Prepare the workspace: what `make setup` and `make setup-training` run, with any Python >= 3.10.

    python3 requirements/setup_workspace.py [--training | --runtime]

Steps, each done once and again only when its inputs change:

1. `.venv`: a virtual environment. Where a ROS distribution is sourced, one that sees its packages.
2. Python packages: ROS 2 as wheels (unless a distribution is sourced), then what the package and
   its tests need; with --training also what model_tools needs, with --runtime no tests.
3. vision_msgs, built from src/vendor into `.venv`, where no ROS distribution provides it.
4. `install/`: the package itself, built by colcon with links to the sources; with --runtime as a
   copy that needs no sources, which is what container images take.

Only the standard library is used, because it runs before anything is installed. A step that was
interrupted leaves no stamp, so the next call does it again.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / '.venv'
VENV_PYTHON = VENV / 'bin' / 'python'
STAMPS = VENV / '.setup'
REQUIREMENTS = ROOT / 'requirements'
PACKAGE = ROOT / 'src' / 'edge_perception'
VISION_MSGS = ROOT / 'src' / 'vendor' / 'vision_msgs'

WHEELS = ('jazzy', 'kilted')
# Python versions bring pips of many ages; this is the one that was tested.
PIP = 'pip==26.3'
PATH_VARIABLES = (
    'AMENT_PREFIX_PATH',
    'CMAKE_PREFIX_PATH',
    'COLCON_PREFIX_PATH',
    'LD_LIBRARY_PATH',
    'PATH',
    'PYTHONPATH',
)

# A ROS 2 prefix is found through its local_setup files; a virtual environment has none.
LOCAL_SETUP = """\
# Written by requirements/setup_workspace.py: puts this virtual environment on the paths of ROS 2.
# install/setup.bash (and .sh, .zsh) reads it, so sourcing that one file is enough.
_edge_perception_prepend() {{
  # A variable's name and a directory, which comes first in it and only once.
  eval "_edge_perception_old=\\":\\${{$1:-}}:\\""
  case "$_edge_perception_old" in
    *":$2:"*) ;;
    *) eval "export $1=\\"$2\\${{$1:+:\\$$1}}\\"" ;;
  esac
}}
_edge_perception_prepend AMENT_PREFIX_PATH '{venv}'
_edge_perception_prepend CMAKE_PREFIX_PATH '{venv}'
_edge_perception_prepend LD_LIBRARY_PATH '{venv}/lib'
_edge_perception_prepend PATH '{venv}/bin'
unset _edge_perception_old
unset -f _edge_perception_prepend
# Set by the ROS wheels once they have put their libraries on LD_LIBRARY_PATH. Inherited into an
# environment where that variable was changed since, it makes every import of rclpy fail.
unset _ROS_WHEELS_BOOTSTRAP_COMPLETE
"""


class SetupError(Exception):
    """Why the workspace cannot be prepared, in words that say what to do."""


def clean_environment() -> dict[str, str]:
    """This process's environment without what this very workspace has put into it."""
    environment = dict(os.environ)
    environment.pop('_ROS_WHEELS_BOOTSTRAP_COMPLETE', None)
    environment.pop('VIRTUAL_ENV', None)
    for name in PATH_VARIABLES:
        if name in environment:
            kept = [
                path
                for path in environment[name].split(os.pathsep)
                if path and ROOT not in (Path(path), *Path(path).parents)
            ]
            if kept:
                environment[name] = os.pathsep.join(kept)
            else:
                del environment[name]
    return environment


def run(
    command: Sequence[str | Path], environment: dict[str, str], *, log: str | None = None
) -> None:
    """Run a command in the workspace; with `log`, its output goes to log/NAME.log, not to the eye.

    Raises:
        SetupError: the command failed. The end of its output has been printed by then.
    """
    arguments = [str(part) for part in command]
    if log is None:
        if subprocess.run(arguments, cwd=ROOT, env=environment).returncode:
            raise SetupError(f'failed: {" ".join(arguments)}')
        return
    path = ROOT / 'log' / f'{log}.log'
    path.parent.mkdir(exist_ok=True)
    with path.open('a') as output:
        result = subprocess.run(
            arguments, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    if result.returncode:
        print(*path.read_text(errors='replace').splitlines()[-40:], sep='\n', file=sys.stderr)
        raise SetupError(f'failed: {" ".join(arguments)} (whole output: {path})')


def answer(python: str | Path, code: str, environment: dict[str, str]) -> str | None:
    """What `python -c code` prints, or None when it fails."""
    result = subprocess.run(
        [str(python), '-c', code], env=environment, cwd='/', capture_output=True, text=True
    )
    return result.stdout.strip() if result.returncode == 0 else None


def digest(parts: Iterable[str | Path]) -> str:
    """A hash over texts and over the names and contents of files and directories."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            total.update(part.encode() + b'\0')
            continue
        for path in sorted(part.rglob('*')) if part.is_dir() else [part]:
            if path.is_file():
                total.update(str(path.relative_to(ROOT)).encode() + b'\0' + path.read_bytes())
    return total.hexdigest()


class Step:
    """One step with a stamp: `with Step(...) as step: if step.due: ...`."""

    def __init__(self, stamp: Path, inputs: Iterable[str | Path], title: str) -> None:
        self.stamp, self.title = stamp, title
        self.key = digest(inputs)
        self.due = not stamp.is_file() or stamp.read_text() != self.key

    def __enter__(self) -> Step:
        self.started = time.monotonic()
        if self.due:
            self.stamp.unlink(missing_ok=True)
            print(f'setup: {self.title} ...', flush=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.due and kind is None:
            self.stamp.parent.mkdir(parents=True, exist_ok=True)
            beside = self.stamp.with_suffix('.new')
            beside.write_text(self.key)
            beside.replace(self.stamp)
            print(f'setup: {self.title}: {time.monotonic() - self.started:.0f} s', flush=True)


def base_python() -> str:
    """The interpreter that this one, perhaps in a virtual environment, comes from."""
    if sys.prefix == sys.base_prefix and VENV not in Path(sys.executable).parents:
        return sys.executable
    base = Path(sys.base_prefix, 'bin', f'python3.{sys.version_info.minor}')
    return str(base) if base.exists() else os.path.realpath(sys.executable)


class Ros:
    """Which ROS 2 is used: a sourced distribution, or the wheels of one release.

    Attributes:
        name: what the environment is bound to, such as `wheels jazzy` or `distribution jazzy`.
        wheels: the release whose wheels are installed, None with a distribution.
        python: the interpreter that the virtual environment is made from.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        base = base_python()
        distribution = environment.get('ROS_DISTRO')
        self.python = base
        self.wheels: str | None = None
        if distribution and environment.get('AMENT_PREFIX_PATH'):
            # ROS is built for the system's Python, which another one may hide on the PATH.
            for python in dict.fromkeys([base, '/usr/bin/python3']):
                if answer(python, 'import rclpy', environment) is not None:
                    self.python = python
                    self.name = f'distribution {distribution}'
                    return
            raise SetupError(
                f'ROS 2 {distribution} is sourced, but neither {base} nor /usr/bin/python3 can '
                'import its rclpy. Install ros-'
                f'{distribution}-rclpy, choose the Python that ROS was built for with '
                '`make setup PYTHON=/path/to/python3`, or use a shell where ROS is not sourced.'
            )
        bound = STAMPS / 'ros'
        before = bound.read_text().split() if bound.is_file() else []
        kept = before[1] if before[:1] == ['wheels'] else WHEELS[0]
        self.wheels = os.environ.get('ROS_WHEELS') or kept
        if self.wheels not in WHEELS:
            raise SetupError(f'ROS_WHEELS={self.wheels}: choose one of {", ".join(WHEELS)}.')
        if platform.machine() != 'x86_64':
            raise SetupError(
                f'there are no ROS 2 wheels for {platform.machine()}, only for x86_64: install '
                'ROS 2 for this machine, `source /opt/ros/<distribution>/setup.bash`, and run '
                '`make setup` again.'
            )
        self.name = f'wheels {self.wheels}'


def check_system(environment: dict[str, str], *, venv: bool, compiler: bool) -> None:
    """Name everything missing at once, with the line that brings it.

    Raises:
        SetupError: something is missing.
    """
    version = f'{sys.version_info.major}.{sys.version_info.minor}'
    missing: dict[str, str] = {}
    if venv and (
        importlib.util.find_spec('venv') is None or importlib.util.find_spec('ensurepip') is None
    ):
        missing['Python module venv with ensurepip'] = f'python{version}-venv'
    if compiler:
        programs = ('gcc', 'g++', 'cmake')  # as their packages are called
        path = environment.get('PATH')
        missing.update({name: name for name in programs if not shutil.which(name, path=path)})
        header = Path(sysconfig.get_path('include'), 'Python.h')
        if not header.is_file():
            missing[f'Python headers ({header})'] = f'python{version}-dev'
    if missing:
        raise SetupError(
            f'missing: {", ".join(missing)}. Install with:\n'
            f'    sudo apt-get install -y {" ".join(missing.values())}'
        )


def make_venv(ros: Ros, environment: dict[str, str]) -> None:
    """Create .venv, or replace one that is bound to another ROS or another Python."""
    bound = STAMPS / 'ros'
    if VENV.exists() and bound.is_file():
        before = bound.read_text()
        if before.startswith('distribution') and ros.wheels:
            raise SetupError(
                f'this workspace was set up with the ROS 2 {before}, which is not sourced here. '
                'Source its setup.bash first, or remove .venv to change to the ROS wheels.'
            )
        if before != ros.name:
            print(f'setup: replacing the environment of {before} by one of {ros.name}', flush=True)
    python = f'{sys.version_info.major}.{sys.version_info.minor} {sys.base_prefix}'
    with Step(STAMPS / 'venv', [ros.name, python, str(VENV)], 'virtual environment') as step:
        if step.due:
            shutil.rmtree(VENV, ignore_errors=True)
            options = [] if ros.wheels else ['--system-site-packages']
            run([ros.python, '-m', 'venv', *options, VENV], environment)
            STAMPS.mkdir()
            # An environment inside the workspace is no package of it.
            (VENV / 'COLCON_IGNORE').touch()
            bound.write_text(ros.name)
    text = LOCAL_SETUP.format(venv=VENV)
    for suffix in ('sh', 'bash', 'zsh'):
        path = VENV / f'local_setup.{suffix}'
        if not path.is_file() or path.read_text() != text:
            path.write_text(text)


def site_packages() -> Path:
    """The directory of the environment's Python packages."""
    return next(VENV.glob('lib/python3.*/site-packages'))


def pip_install(arguments: Sequence[str | Path], environment: dict[str, str]) -> None:
    """Run pip in .venv, after removing what an interrupted pip believes to be installed.

    pip writes a package's RECORD last. Without it the metadata may stand there although files
    outside site-packages are missing, and pip would call the package installed.
    """
    for metadata in site_packages().glob('*.dist-info'):
        if not (metadata / 'RECORD').is_file():
            shutil.rmtree(metadata)
    pip = [str(VENV_PYTHON), '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check']
    run([*pip, *map(str, arguments)], environment)


def distribution_requirements(environment: dict[str, str]) -> list[str]:
    """pip arguments for runtime.txt that leave the ROS distribution's own packages in place.

    Its compiled code (message types, cv_bridge) works with its own NumPy and OpenCV only: code
    built for NumPy 1 cannot be loaded under NumPy 2.
    """
    code = (
        'import sys, importlib.metadata as metadata\n'
        'from pip._vendor.packaging.requirements import Requirement\n'
        'def there(name):\n'
        '    try:\n'
        '        return bool(metadata.version(name))\n'
        '    except metadata.PackageNotFoundError:\n'
        '        return False\n'
        f'for line in open({str(REQUIREMENTS / "runtime.txt")!r}):\n'
        "    line = line.split('#')[0].strip()\n"
        '    if line:\n'
        '        item = Requirement(line)\n'
        '        if item.marker is None or item.marker.evaluate():\n'
        '            if not there(item.name):\n'
        "                print(f'{item.name}{item.specifier}')\n"
    )
    # Only what lies outside the environment is the distribution's.
    found = answer(VENV_PYTHON, _without_venv(code), environment)
    if found is None:
        raise SetupError('cannot read the Python packages of the ROS distribution')
    wanted = found.splitlines()
    opencv = answer(base_python(), 'import cv2; print(cv2.__version__)', environment)
    if opencv and opencv.startswith('4.'):
        wanted = [line for line in wanted if not line.startswith('opencv')]
    else:
        # The pinned build needs NumPy 2; let pip choose the newest that goes with this NumPy.
        wanted = [re.sub(r'^(opencv[\w-]*)==.*', r'\1<5', line) for line in wanted]
    return wanted


def _without_venv(code: str) -> str:
    """The same code, looking for packages outside .venv only (but with pip from inside)."""
    return (
        'import sys, pip._vendor.packaging.requirements\n'
        f'sys.path = [p for p in sys.path if not p.startswith({str(VENV)!r})]\n'
    ) + code


def constraints(ros: Ros, environment: dict[str, str]) -> list[str]:
    """pip arguments that keep NumPy 1 where the ROS distribution was built for it."""
    if ros.wheels:
        return []
    numpy = answer(ros.python, 'import numpy; print(numpy.__version__)', environment) or '1'
    path = STAMPS / 'constraints.txt'
    path.write_text('numpy<2\n' if numpy.startswith('1.') else 'numpy>=2\n')
    return ['--constraint', str(path)]


def fix_exported_paths(environment: dict[str, str]) -> None:
    """Replace the include paths of the machine where the ROS wheels were built by ours.

    Their CMake files name the Python and NumPy headers of that machine, which exist nowhere else.
    """
    numpy = answer(VENV_PYTHON, 'import numpy; print(numpy.get_include())', environment)
    if numpy is None:
        raise SetupError('NumPy was installed but cannot be imported from .venv')
    headers = sysconfig.get_path('include')
    for path in (VENV / 'share').glob('**/*Export.cmake'):
        text = path.read_text()
        fixed = re.sub(r'/opt/python/[^";]*/numpy/(?:_core|core)/include', numpy, text)
        fixed = re.sub(r'/opt/python/cp\w+-cp\w+/include/python3\.\d+', headers, fixed)
        if fixed != text:
            path.write_text(fixed)


def install_packages(ros: Ros, environment: dict[str, str], *, tests: bool) -> None:
    """Step 2: ROS 2 and everything that running and, with `tests`, testing need, by pip."""
    names = ['runtime.txt', 'build.txt', *(['dev.txt', 'dev-no-deps.txt'] if tests else [])]
    files = [REQUIREMENTS / name for name in names]
    if ros.wheels:
        files.insert(0, REQUIREMENTS / f'ros-{ros.wheels}.txt')
    title = f'Python packages with ROS 2 {ros.wheels}' if ros.wheels else 'Python packages'
    with Step(STAMPS / 'packages', [ros.name, PIP, *files], title) as step:
        if not step.due:
            return
        pip_install([PIP], environment)
        no_deps = [path for path in files if path.stem.endswith('-no-deps')]
        files = [path for path in files if path not in no_deps]
        if ros.wheels:
            wanted: list[str | Path] = []
        else:
            wanted = list(distribution_requirements(environment))
            files.remove(REQUIREMENTS / 'runtime.txt')
        for path in files:
            wanted += ['--requirement', path]
        pip_install([*wanted, *constraints(ros, environment)], environment)
        for path in no_deps:
            pip_install(['--no-deps', '--requirement', path], environment)
        if ros.wheels:
            fix_exported_paths(environment)


def install_training(ros: Ros, environment: dict[str, str]) -> None:
    """Step 2 for model_tools: PyTorch and Ultralytics, about 6 GB."""
    files = [REQUIREMENTS / 'training.txt', REQUIREMENTS / 'training-no-deps.txt']
    title = 'Python packages for training (about 6 GB)'
    with Step(STAMPS / 'training', [ros.name, *files], title) as step:
        if step.due:
            pip_install(
                ['--requirement', str(files[0]), *constraints(ros, environment)], environment
            )
            pip_install(['--no-deps', '--requirement', files[1]], environment)


def build_environment(ros: Ros, environment: dict[str, str]) -> dict[str, str]:
    """The environment in which CMake and colcon find ROS 2 and .venv."""
    built = dict(environment)
    built['PATH'] = f'{VENV / "bin"}{os.pathsep}{environment.get("PATH", "")}'
    for name in ('AMENT_PREFIX_PATH', 'CMAKE_PREFIX_PATH'):
        others = [] if ros.wheels or name not in environment else [environment[name]]
        built[name] = os.pathsep.join([str(VENV), *others])
    if ros.wheels:
        for name in ('COLCON_PREFIX_PATH', 'PYTHONPATH'):
            built.pop(name, None)
    return built


def has_vision_msgs(ros: Ros, environment: dict[str, str]) -> bool:
    """Whether the sourced ROS distribution itself provides vision_msgs."""
    code = 'from vision_msgs.msg import Detection2DArray, LabelInfo'
    return not ros.wheels and answer(ros.python, code, environment) is not None


def build_vision_msgs(ros: Ros, environment: dict[str, str]) -> None:
    """Step 3: vision_msgs into .venv, where the other ROS packages are."""
    inputs: list[str | Path] = [ros.name, str(VENV), VISION_MSGS]
    if ros.wheels:
        inputs.append(REQUIREMENTS / f'ros-{ros.wheels}.txt')
    with Step(STAMPS / 'vision_msgs', inputs, 'vision_msgs from src/vendor') as step:
        if not step.due:
            return
        check_system(environment, venv=False, compiler=True)
        build = ROOT / 'build' / 'vision_msgs'
        shutil.rmtree(build, ignore_errors=True)
        (ROOT / 'log' / 'vision_msgs.log').unlink(missing_ok=True)
        configure = ['cmake', '-S', str(VISION_MSGS), '-B', str(build)]
        options = [f'-DCMAKE_INSTALL_PREFIX={VENV}', '-DCMAKE_BUILD_TYPE=Release']
        options += ['-DBUILD_TESTING=OFF', f'-DPython3_EXECUTABLE={VENV_PYTHON}']
        built = build_environment(ros, environment)
        jobs = str(os.cpu_count() or 1)
        run([*configure, *options], built, log='vision_msgs')
        run(['cmake', '--build', build, '--parallel', jobs], built, log='vision_msgs')
        run(['cmake', '--install', build], built, log='vision_msgs')


def build_package(ros: Ros, environment: dict[str, str], *, link: bool) -> None:
    """Step 4: install/ by colcon, with links to the sources or as a copy."""
    # The build links files one by one, so a new file needs a new build and a changed one does not.
    names = [
        str(path.relative_to(ROOT))
        for folder in ('launch', 'config', 'models')
        for path in sorted((ROOT / folder).rglob('*'))
        if path.is_file() and '__pycache__' not in path.parts
    ]
    inputs: list[str | Path] = [ros.name, str(VENV), *names, *([] if link else ['copy'])]
    inputs += [PACKAGE / name for name in ('package.xml', 'setup.py', 'setup.cfg')]
    stamp = ROOT / 'install' / 'edge_perception' / '.setup'
    with Step(stamp, inputs, 'edge_perception by colcon') as step:
        if not step.due:
            return
        (ROOT / 'log' / 'edge_perception.log').unlink(missing_ok=True)
        for base in ('build', 'install'):
            shutil.rmtree(ROOT / base / 'edge_perception', ignore_errors=True)
        options = ['--symlink-install'] if link else []
        # As a module, because the scripts that it writes start with the Python that it runs on.
        colcon = [str(VENV_PYTHON), '-m', 'colcon']
        run(
            [*colcon, 'build', *options, '--base-paths', 'src'],
            build_environment(ros, environment),
            log='edge_perception',
        )


def main() -> int:
    """Run the steps; the exit status is 1, with one message, when one cannot be done."""
    parser = argparse.ArgumentParser(description='Prepare the workspace.')
    what = parser.add_mutually_exclusive_group()
    what.add_argument('--training', action='store_true', help='also what model_tools needs')
    what.add_argument('--runtime', action='store_true', help='no tests; sources may go afterwards')
    options = parser.parse_args()
    if sys.version_info < (3, 10):  # noqa: UP036, the version is what is checked
        found = f'{sys.version_info[0]}.{sys.version_info[1]}'
        print(
            f'setup: Python 3.10 or newer is needed, this is {found}: '
            'run `make setup PYTHON=python3.11` (or another one that is installed).',
            file=sys.stderr,
        )
        return 1
    environment = clean_environment()
    try:
        lock = open(__file__)  # noqa: SIM115, held until this process ends
        fcntl.flock(lock, fcntl.LOCK_EX)
        ros = Ros(environment)
        if ros.python != base_python():
            # All that follows asks and checks the Python that it runs on.
            os.execve(ros.python, [ros.python, *sys.argv], environment)
        vendored = not has_vision_msgs(ros, environment)
        check_system(
            environment,
            venv=not (STAMPS / 'venv').is_file(),
            compiler=vendored and not (STAMPS / 'vision_msgs').is_file(),
        )
        make_venv(ros, environment)
        install_packages(ros, environment, tests=not options.runtime)
        if vendored:
            build_vision_msgs(ros, environment)
        if options.training:
            install_training(ros, environment)
        build_package(ros, environment, link=not options.runtime)
    except SetupError as error:
        print(f'setup: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\nsetup: interrupted; the next `make setup` goes on from here.', file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
