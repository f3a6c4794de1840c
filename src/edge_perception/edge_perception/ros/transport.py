"""What the middleware and the C library need so that Python nodes pass images without loss.

Two things are wrong for images as they come. Fast DDS splits an image into many fragments and
loses some of them (config/fastdds.xml says more). And glibc maps and unmaps memory anew for every
block above 128 KiB, so each received image pays for thousands of page faults; with higher
thresholds the same memory is used again, which cuts the CPU time of a 1080p subscriber to about a
quarter.

Every executable calls `apply_transport_defaults` before `rclpy.init`, launch files give
`transport_environment` to the processes they start. In the environment,
`EDGE_PERCEPTION_TRANSPORT=network` chooses the profile for a network that loses packets, and
`default` switches both off; what the user has set is left alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import itertools
import os
import platform
import re
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from edge_perception.ros.paths import share_folder
from edge_perception.ros.release import has_fast_dds_3
from edge_perception.types import EdgePerceptionError

SHARED_MEMORY = Path('/dev/shm')
SWITCH_VARIABLE = 'EDGE_PERCEPTION_TRANSPORT'
# Fast DDS 3 (Kilted) reads the first, Fast DDS 2 (Humble, Jazzy) the second.
PROFILE_VARIABLES = ('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE')
# The values of the switch, and the profiles in config/ that each stands for, in that order.
PROFILES = {
    'images': ('fastdds.xml', 'fastdds.xml'),
    'network': ('fastdds3_network.xml', 'fastdds_network.xml'),
    'default': (),
}

# mallopt(3): blocks below the first come from the heap, whose free end goes back to the system
# only above the second. 32 MiB is the highest mmap threshold that the manual allows; it covers 4K
# bgr8.
MMAP_THRESHOLD_BYTES = 32 * 1024 * 1024
TRIM_THRESHOLD_BYTES = 256 * 1024 * 1024
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_MALLOC_VARIABLES = {
    'MALLOC_MMAP_THRESHOLD_': str(MMAP_THRESHOLD_BYTES),
    'MALLOC_TRIM_THRESHOLD_': str(TRIM_THRESHOLD_BYTES),
}

# The lock that a program of Fast DDS holds on each piece of shared memory while it lives.
_SEGMENT_LOCK = re.compile(r'fast(rtps|dds)_[0-9a-f]{16}_el')
# A younger lock may be one that its program is about to take.
_LOCKED_WITHIN_S = 10.0

# Where every participant of a domain listens for others, of whichever DDS (OMG DDSI-RTPS 2.5,
# 9.6.2.3). Above domain 101 the ports collide with the ephemeral ones of Linux.
_DISCOVERY_PORT, _PORTS_PER_DOMAIN, _HIGHEST_DOMAIN = 7400, 250, 101
# From a place of its own in each process: two that look at once do not find the same one.
_domain_ids = itertools.cycle(
    (os.getpid() + offset) % _HIGHEST_DOMAIN + 1 for offset in range(_HIGHEST_DOMAIN)
)


class TransportError(EdgePerceptionError):
    """The value of EDGE_PERCEPTION_TRANSPORT is none that this module knows."""


def apply_transport_defaults() -> None:
    """Set up this process for images; call it before `rclpy.init`, before other threads start.

    Raises:
        TransportError: EDGE_PERCEPTION_TRANSPORT has a value that is not in PROFILES.
    """
    if not _profiles(os.environ):
        return
    os.environ.update(_profile_environment(os.environ))
    # The C library reads its environment variables before Python runs, so here it takes the call.
    if platform.libc_ver()[0] == 'glibc' and not _MALLOC_VARIABLES.keys() & os.environ.keys():
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)


def transport_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables that set up a process yet to be started, such as by a launch file.

    Args:
        environment: what the process would otherwise see, this process's own by default.

    Returns:
        Variables to add; none that the environment has already.

    Raises:
        TransportError: EDGE_PERCEPTION_TRANSPORT has a value that is not in PROFILES.
    """
    environment = os.environ if environment is None else environment
    if not _profiles(environment):
        return {}
    variables = _profile_environment(environment)
    if not _MALLOC_VARIABLES.keys() & environment.keys():
        variables.update(_MALLOC_VARIABLES)
    return variables


def other_users_of_shared_memory(folder: Path = SHARED_MEMORY) -> list[int]:
    """User ids of other users whose Fast DDS programs have used this machine's shared memory.

    Fast DDS creates its files there for their owner only to write to. Programs of two users find
    each other, take shared memory for the way, and no message arrives.
    """
    found = set()
    for path in folder.glob('fast*_port*'):
        with contextlib.suppress(OSError):  # it has just ended
            found.add(path.stat().st_uid)
    return sorted(found - {os.geteuid()})


def unused_domain_id() -> int:
    """A ROS domain in which no program of this machine is, 1 to 101; another with each call.

    For measurements and tests, which must not hear the nodes of others.

    Raises:
        TransportError: no domain is free.
    """
    for domain_id in itertools.islice(_domain_ids, _HIGHEST_DOMAIN):
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe,
        ):
            probe.bind(('', _DISCOVERY_PORT + _PORTS_PER_DOMAIN * domain_id))
            return domain_id
    raise TransportError('every ROS domain from 1 to 101 is in use: end what you do not need')


def remove_abandoned_shared_memory(folder: Path = SHARED_MEMORY) -> int:
    """Remove the shared memory of Fast DDS programs that were killed.

    With the profiles of this package each leaves 67 MiB behind, which Fast DDS never takes back:
    on a small computer a few dozen lives of a process that is killed and started again would fill
    the memory. What other users left is theirs to remove.

    Returns:
        Bytes that are free again.
    """
    freed_bytes = 0
    for lock in folder.glob('fast*_el'):
        if not _SEGMENT_LOCK.fullmatch(lock.name):
            continue
        # Another program that starts may remove it, too; it may be another user's.
        with contextlib.suppress(OSError), lock.open() as file:
            if time.time() - os.fstat(file.fileno()).st_mtime < _LOCKED_WITHIN_S:
                continue
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            segment = lock.with_name(lock.name.removesuffix('_el'))
            size_bytes = segment.stat().st_blocks * 512
            segment.unlink()
            lock.unlink()
            freed_bytes += size_bytes
    return freed_bytes


def _profiles(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The profiles that the user wants; none for none of these settings at all."""
    value = environment.get(SWITCH_VARIABLE, 'images')
    if value not in PROFILES:
        raise TransportError(
            f'{SWITCH_VARIABLE}={value}: use `images` (the same as unset) for the settings of '
            'this package, `network` for those where images cross a network that loses packets, '
            'or `default` for those of the middleware'
        )
    return PROFILES[value]


def _profile_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that name the Fast DDS profile, where Fast DDS is used and has none yet."""
    middleware = environment.get('RMW_IMPLEMENTATION', '')
    if middleware and not middleware.startswith('rmw_fastrtps'):
        return {}
    new, old = PROFILE_VARIABLES
    if environment.get(new) or environment.get(old):
        # Fast DDS 2 does not know the new name; in Kilted the middleware still reads the old one.
        if environment.get(old) or has_fast_dds_3():
            return {}
        return {old: environment[new]}
    if environment.get('FASTDDS_BUILTIN_TRANSPORTS'):  # a profile would override it
        return {}
    # Not both: Kilted would read both, and refuse the second.
    this = 0 if has_fast_dds_3() else 1
    profile = share_folder() / 'config' / _profiles(environment)[this]
    return {PROFILE_VARIABLES[this]: str(profile)}
