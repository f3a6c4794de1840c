"""The settings of ros/transport.py, and that with them images really pass between processes."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip('rclpy', reason='rclpy is not there: run make setup')

from edge_perception.ros import transport
from edge_perception.ros.release import has_fast_dds_3

PROFILE = str(transport.share_folder() / 'config' / 'fastdds.xml')
NEW, OLD = transport.PROFILE_VARIABLES
VARIABLE = NEW if has_fast_dds_3() else OLD
PROFILE_VARIABLES = {VARIABLE: PROFILE}
NETWORK_PROFILES = [
    PROFILE.replace('fastdds.xml', name)
    for name in ('fastdds3_network.xml', 'fastdds_network.xml')
]
NETWORK_VARIABLES = {VARIABLE: NETWORK_PROFILES[0 if has_fast_dds_3() else 1]}
MALLOC_VARIABLES = {'MALLOC_MMAP_THRESHOLD_': '33554432', 'MALLOC_TRIM_THRESHOLD_': '268435456'}

only_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != 'glibc', reason='the C library is not glibc'
)
only_fast_dds = pytest.mark.skipif(
    not os.environ.get('RMW_IMPLEMENTATION', 'rmw_fastrtps_cpp').startswith('rmw_fastrtps'),
    reason='another middleware than Fast DDS is chosen by RMW_IMPLEMENTATION',
)


@pytest.fixture(autouse=True)
def domain(new_domain_id: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A ROS domain for the processes of a test."""
    monkeypatch.setenv('ROS_DOMAIN_ID', str(new_domain_id()))


def clean_environment(**variables: str) -> dict[str, str]:
    """This process's environment without any of the settings, and with `variables`."""
    settings = {
        *transport.PROFILE_VARIABLES,
        *MALLOC_VARIABLES,
        'FASTDDS_BUILTIN_TRANSPORTS',
        'EDGE_PERCEPTION_TRANSPORT',
    }
    kept = {name: value for name, value in os.environ.items() if name not in settings}
    return {**kept, **variables}


def run_python(code: str, **variables: str) -> str:
    """What a fresh Python process prints."""
    result = subprocess.run(
        [sys.executable, '-c', textwrap.dedent(code)],
        env=clean_environment(**variables),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize(
    ('environment', 'expected'),
    [
        # Fast DDS is what ROS 2 uses when nothing is said.
        ({}, {**PROFILE_VARIABLES, **MALLOC_VARIABLES}),
        ({'RMW_IMPLEMENTATION': ''}, {**PROFILE_VARIABLES, **MALLOC_VARIABLES}),
        ({'RMW_IMPLEMENTATION': 'rmw_fastrtps_cpp'}, {**PROFILE_VARIABLES, **MALLOC_VARIABLES}),
        # Another middleware takes no Fast DDS profile, but the same C library.
        ({'RMW_IMPLEMENTATION': 'rmw_cyclonedds_cpp'}, MALLOC_VARIABLES),
        # What the user has set stays, and holds for the release that knows the old name only too.
        (
            {NEW: '/own.xml'},
            {**({} if has_fast_dds_3() else {OLD: '/own.xml'}), **MALLOC_VARIABLES},
        ),
        ({OLD: '/own.xml'}, MALLOC_VARIABLES),
        ({NEW: '/own.xml', OLD: '/own.xml'}, MALLOC_VARIABLES),
        ({'FASTDDS_BUILTIN_TRANSPORTS': 'LARGE_DATA'}, MALLOC_VARIABLES),
        ({'MALLOC_TRIM_THRESHOLD_': '1'}, PROFILE_VARIABLES),
        # The switch.
        ({'EDGE_PERCEPTION_TRANSPORT': 'default'}, {}),
        ({'EDGE_PERCEPTION_TRANSPORT': 'images'}, {**PROFILE_VARIABLES, **MALLOC_VARIABLES}),
        ({'EDGE_PERCEPTION_TRANSPORT': 'network'}, {**NETWORK_VARIABLES, **MALLOC_VARIABLES}),
    ],
)
def test_variables_for_a_process_to_start(
    environment: dict[str, str], expected: dict[str, str]
) -> None:
    assert Path(PROFILE).is_file()
    assert transport.transport_environment(environment) == expected


def test_both_releases_of_fast_dds_are_told_the_same() -> None:
    """Each refuses a file with the names of the other."""
    new, old = (Path(path).read_text().partition('-->')[2] for path in NETWORK_PROFILES)
    assert new == re.sub(
        '(heartbeat|nack)(Response)?(Period|Delay)',
        lambda found: '_'.join(part.lower() for part in found.groups() if part),
        old,
    )


@only_fast_dds
def test_fast_dds_takes_the_profile_for_networks_without_a_complaint() -> None:
    code = """
        import rclpy
        from edge_perception.ros.transport import apply_transport_defaults
        apply_transport_defaults()
        rclpy.init()
        rclpy.create_node('quiet').destroy_node()
        rclpy.shutdown()
    """
    result = subprocess.run(
        [sys.executable, '-c', textwrap.dedent(code)],
        env=clean_environment(EDGE_PERCEPTION_TRANSPORT='network'),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, '', '')


def test_unknown_switch_is_refused() -> None:
    with pytest.raises(transport.TransportError, match='EDGE_PERCEPTION_TRANSPORT=fast'):
        transport.transport_environment({'EDGE_PERCEPTION_TRANSPORT': 'fast'})


def test_other_users_of_shared_memory_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ('fastdds_port7400', 'fastrtps_port7411', 'sem.other'):
        (tmp_path / name).touch()
    assert transport.other_users_of_shared_memory(tmp_path) == []
    me = os.geteuid()
    monkeypatch.setattr(os, 'geteuid', lambda: me + 1)
    assert transport.other_users_of_shared_memory(tmp_path) == [me]
    assert transport.other_users_of_shared_memory(tmp_path / 'absent') == []


@only_fast_dds
def test_the_shared_memory_of_a_program_is_seen_by_another_user() -> None:
    """The names of the files are those that Fast DDS gives them."""
    code = """
        import os, rclpy
        from edge_perception.ros.transport import other_users_of_shared_memory
        rclpy.init()
        node = rclpy.create_node('seen')
        me = os.geteuid()
        os.geteuid = lambda: me + 1
        print(me in other_users_of_shared_memory())
        node.destroy_node()
        rclpy.shutdown()
    """
    assert run_python(code) == 'True'


LARGEST_SEGMENT = """
    import os, rclpy
    from edge_perception.ros.transport import apply_transport_defaults
    apply_transport_defaults()
    rclpy.init()
    node = rclpy.create_node('segments')
    files = {line.split()[-1] for line in open('/proc/self/maps') if '/dev/shm/' in line}
    print(max(os.stat(path).st_size for path in files if os.path.exists(path)))
    node.destroy_node()
    rclpy.shutdown()
"""


@only_fast_dds
@pytest.mark.parametrize(
    ('switch', 'holds_images'),
    [('images', True), ('network', True), ('default', False)],
)
def test_fast_dds_takes_the_shared_memory_segment(switch: str, holds_images: bool) -> None:
    size_bytes = int(run_python(LARGEST_SEGMENT, EDGE_PERCEPTION_TRANSPORT=switch))
    assert (size_bytes >= 64 * 1024 * 1024) == holds_images


# hblks of mallinfo2: how many blocks were mapped for themselves. 24 883 200 bytes: 4K bgr8.
MAPPED_BLOCKS = """
    import ctypes
    from edge_perception.ros.transport import apply_transport_defaults
    apply_transport_defaults()
    names = 'arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost'
    class MallInfo(ctypes.Structure):
        _fields_ = [(name, ctypes.c_size_t) for name in names.split()]
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = MallInfo
    libc.malloc.restype = ctypes.c_void_p
    before = libc.mallinfo2().hblks
    libc.malloc(ctypes.c_size_t(24883200))
    print(libc.mallinfo2().hblks - before)
"""


@only_glibc
@pytest.mark.parametrize(('switch', 'mapped'), [('images', '0'), ('default', '1')])
def test_image_sized_memory_comes_from_the_heap(switch: str, mapped: str) -> None:
    assert run_python(MAPPED_BLOCKS, EDGE_PERCEPTION_TRANSPORT=switch) == mapped


RECEIVER = """
    import sys, zlib, rclpy
    from sensor_msgs.msg import Image
    from std_msgs.msg import String
    from edge_perception.ros.qos import image_qos
    from edge_perception.ros.transport import apply_transport_defaults

    apply_transport_defaults()
    rclpy.init()
    node = rclpy.create_node('receiver', namespace=sys.argv[1])
    answers = node.create_publisher(String, 'answers', 10)

    def answer(image):
        text = f'{image.header.frame_id} {image.height}x{image.width} {zlib.crc32(image.data)}'
        answers.publish(String(data=text))

    node.create_subscription(Image, 'image_raw', answer, image_qos(1))
    while rclpy.ok():
        rclpy.spin_once(node, timeout_sec=0.5)
"""

# One image after the other, each sent again until it is answered. The first is sent until the two
# have found each other; of the others each repetition is an image that was lost.
SENDER = """
    import array, sys, time, zlib, numpy, rclpy
    from sensor_msgs.msg import Image
    from std_msgs.msg import String
    from edge_perception.ros.qos import image_qos
    from edge_perception.ros.transport import apply_transport_defaults

    apply_transport_defaults()
    rclpy.init()
    node = rclpy.create_node('sender', namespace=sys.argv[1])
    images = node.create_publisher(Image, 'image_raw', image_qos(1))
    answered = []
    node.create_subscription(String, 'answers', lambda answer: answered.append(answer.data), 10)
    random = numpy.random.default_rng(0)
    lost = 0
    for number in range(31):
        pixels = random.integers(0, 256, (1080, 1920, 3), numpy.uint8)
        image = Image(height=1080, width=1920, encoding='bgr8', step=5760)
        image.header.frame_id = str(number)
        image.data = array.array('B', pixels.tobytes())
        expected = f'{number} 1080x1920 {zlib.crc32(pixels)}'
        while expected not in answered:
            images.publish(image)
            until = time.monotonic() + (5.0 if number else 0.5)
            while expected not in answered and time.monotonic() < until:
                rclpy.spin_once(node, timeout_sec=0.1)
            lost += number > 0 and expected not in answered
    print('lost', lost)
"""


@only_fast_dds
def test_1080p_images_pass_between_processes_without_loss() -> None:
    """Best effort, keep last 1, 6 MiB each: Fast DDS as it comes loses most of these."""
    namespace = f'/transport_{uuid.uuid4().hex}'
    receiver = subprocess.Popen(
        [sys.executable, '-c', textwrap.dedent(RECEIVER), namespace],
        env=clean_environment(),
        stderr=subprocess.DEVNULL,  # it is ended by a signal
    )
    try:
        result = subprocess.run(
            [sys.executable, '-c', textwrap.dedent(SENDER), namespace],
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=200,
        )
    finally:
        receiver.terminate()
        receiver.wait()
    assert result.stdout.strip() == 'lost 0', result.stderr


HOLDER = """
    import sys, rclpy
    from edge_perception.ros.transport import unused_domain_id
    for _ in range(3):
        domain_id = unused_domain_id()
    rclpy.init(domain_id=domain_id)
    node = rclpy.create_node('holder')
    print(domain_id, flush=True)
    sys.stdin.read()
"""


def test_domain_of_another_program_is_not_given() -> None:
    with subprocess.Popen(
        [sys.executable, '-c', textwrap.dedent(HOLDER)],
        env=clean_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        taken = int(holder.stdout.readline())
        given = [transport.unused_domain_id() for _ in range(200)]
        assert taken not in given
        holder.stdin.close()
    assert min(given) >= 1 and max(given) <= 101
    assert len(set(given)) > 50, 'the others are'
    assert taken in [transport.unused_domain_id() for _ in range(101)], 'it is free again'
