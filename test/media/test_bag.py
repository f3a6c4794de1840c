"""rosbag2 recordings, read and written."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from rosbags.interfaces import QosDurability
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from edge_perception.media import CameraInfo, MediaError, open_source
from edge_perception.media.bag import BagWriter

from .makers import gray_frame

STORE = get_typestore(Stores.ROS2_JAZZY)
IMAGE = 'sensor_msgs/msg/Image'
COMPRESSED = 'sensor_msgs/msg/CompressedImage'
INFO = 'sensor_msgs/msg/CameraInfo'
TEXT = 'std_msgs/msg/String'
VENDORED = Path(__file__).parents[2] / 'src' / 'vendor'
MS = 1_000_000

Record = tuple[str, str, int, Any]


def _header(stamp_ns: int, frame_id: str = 'camera') -> Any:
    stamp = STORE.types['builtin_interfaces/msg/Time'](
        sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9
    )
    return STORE.types['std_msgs/msg/Header'](stamp=stamp, frame_id=frame_id)


def _image(stamp_ns: int, level: int, encoding: str = 'bgr8') -> Any:
    pixels = gray_frame(level)
    return STORE.types[IMAGE](
        header=_header(stamp_ns),
        height=pixels.shape[0],
        width=pixels.shape[1],
        encoding=encoding,
        is_bigendian=0,
        step=pixels.shape[1] * 3,
        data=pixels.reshape(-1),
    )


def _compressed(stamp_ns: int, level: int) -> Any:
    data = cv2.imencode('.jpg', gray_frame(level))[1]
    return STORE.types[COMPRESSED](header=_header(stamp_ns), format='jpeg', data=data)


def _info(stamp_ns: int) -> Any:
    return STORE.types[INFO](
        header=_header(stamp_ns),
        height=48,
        width=64,
        distortion_model='plumb_bob',
        d=np.array([0.1, 0.2, 0.0, 0.0, 0.0]),
        k=np.arange(9.0),
        r=np.eye(3).ravel(),
        p=np.arange(12.0),
        binning_x=0,
        binning_y=0,
        roi=STORE.types['sensor_msgs/msg/RegionOfInterest'](
            x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
        ),
    )


def _text(value: str) -> Any:
    return STORE.types[TEXT](data=value)


def _write(
    path: Path, records: Iterable[Record], plugin: StoragePlugin = StoragePlugin.MCAP
) -> Path:
    """A bag by the library alone: topic, type, time of recording and message of each record."""
    with Writer(path, version=9, storage_plugin=plugin) as writer:
        connections: dict[str, Any] = {}
        for topic, msgtype, recorded_ns, message in records:
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, msgtype, typestore=STORE)
            data = message if isinstance(message, bytes) else STORE.serialize_cdr(message, msgtype)
            writer.write(connections[topic], recorded_ns, data)
    return path


def _images(count: int, topic: str = '/front/image_raw') -> list[Record]:
    """Images at 20 Hz from second 100, each recorded 7 ms after it was taken."""
    stamps_ns = [100_000 * MS + index * 50 * MS for index in range(count)]
    return [
        (topic, IMAGE, stamp_ns + 7 * MS, _image(stamp_ns, 10 * index))
        for index, stamp_ns in enumerate(stamps_ns)
    ]


@pytest.mark.parametrize('plugin', list(StoragePlugin))
@pytest.mark.parametrize('as_file', [False, True])
def test_images_with_their_own_stamps(
    tmp_path: Path, plugin: StoragePlugin, as_file: bool
) -> None:
    """MCAP and SQLite, folder or single file: header stamps, frame ids, order, count, rate."""
    path = _write(
        tmp_path / 'bag', [*_images(5), ('/chat', TEXT, 100_000 * MS, _text('x'))], plugin
    )
    if as_file:
        (path,) = [item for item in path.iterdir() if item.suffix in ('.mcap', '.db3')]
    with open_source(path) as source:
        assert (source.frame_count, source.is_live, source.camera_info) == (5, False, None)
        assert source.rate_hz == pytest.approx(20, rel=0.05)
        frames = list(source)
    assert [frame.stamp_ns for frame in frames] == [
        100_000 * MS + index * 50 * MS for index in range(5)
    ]
    assert [int(frame.image[0, 0, 0]) for frame in frames] == [0, 10, 20, 30, 40]
    assert {frame.frame_id for frame in frames} == {'camera'}


def test_loop_and_rate_and_frame_id(tmp_path: Path) -> None:
    """The second round goes on in time; a given rate replaces the stamps after the first."""
    path = _write(tmp_path / 'bag', _images(3))
    with open_source(path, loop=True) as source:
        stamps_ns = [next(source).stamp_ns - 100_000 * MS for _ in range(7)]
        assert source.round == 2
    assert stamps_ns == [index * 50 * MS for index in range(7)]
    with open_source(path, rate_hz=4, frame_id='other') as source:
        frames = list(source)
    assert [frame.stamp_ns - 100_000 * MS for frame in frames] == [0, 250 * MS, 500 * MS]
    assert frames[0].frame_id == 'other'


def test_image_without_stamp_has_the_time_of_recording(tmp_path: Path) -> None:
    """Drivers that forget the stamp leave the only time there is."""
    path = _write(tmp_path / 'bag', [('/image', IMAGE, 5_000 * MS, _image(0, 1))])
    with open_source(path) as source:
        assert next(source).stamp_ns == 5_000 * MS


def test_calibration_beside_the_images(tmp_path: Path) -> None:
    """The camera_info in the namespace of the image topic, also of a compressed one."""
    for topic, msgtype, make in (
        ('/front/image_raw', IMAGE, _image),
        ('/front/image_raw/compressed', COMPRESSED, _compressed),
    ):
        path = _write(
            tmp_path / msgtype.rpartition('/')[2],
            [
                (topic, msgtype, 1 * MS, make(1 * MS, 3)),
                ('/back/camera_info', INFO, 2 * MS, _info(2 * MS)),
                ('/front/camera_info', INFO, 3 * MS, _info(3 * MS)),
            ],
        )
        with open_source(path) as source:
            assert source.camera_info == CameraInfo(
                width=64,
                height=48,
                k=tuple(np.arange(9.0)),
                d=(0.1, 0.2, 0.0, 0.0, 0.0),
                r=tuple(np.eye(3).ravel()),
                p=tuple(np.arange(12.0)),
                distortion_model='plumb_bob',
                frame_id='camera',
            )


def test_which_topic(tmp_path: Path) -> None:
    """One camera needs no choice, raw or compressed; several do, and the error lists them."""
    one = _write(
        tmp_path / 'one',
        [
            *_images(1),
            ('/front/image_raw/compressed', COMPRESSED, 9 * MS, _compressed(1, 200)),
            ('/front/image_raw/compressedDepth', COMPRESSED, 9 * MS, _compressed(1, 100)),
        ],
    )
    with open_source(one) as source:
        assert next(source).image.max() == 0
    with open_source(one, image_topic='front/image_raw/compressed') as source:
        assert next(source).image.max() == 200
    two = _write(
        tmp_path / 'two',
        [*_images(1), ('/back/compressed', COMPRESSED, 9 * MS, _compressed(1, 200))],
    )
    with pytest.raises(MediaError, match=r'several image topics.*: /back/compressed, /front'):
        open_source(two)
    with open_source(two, image_topic='/back') as source:
        assert next(source).image.max() == 200
    with pytest.raises(MediaError, match=r'no image topic /side; its image topics: /back'):
        open_source(two, image_topic='/side')


def test_bag_without_images(tmp_path: Path) -> None:
    """The error lists what there is instead."""
    path = _write(tmp_path / 'bag', [('/chat', TEXT, 1, _text('x'))])
    with pytest.raises(MediaError, match=r'has no image topic; its topics: /chat \(std_msgs/msg'):
        open_source(path)


def test_undecodable_images_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Single bad images are skipped and counted; nothing but bad ones is an error."""
    bad = [
        ('/front/image_raw', IMAGE, 200_000 * MS, _image(1, 1, encoding='wrong')),
        ('/front/image_raw', IMAGE, 200_001 * MS, b'\0\1\0\0\5'),
    ]
    path = _write(tmp_path / 'some', [*_images(2), *bad, *_images(1)])
    with caplog.at_level(logging.WARNING), open_source(path) as source:
        assert len(list(source)) == 3
        assert source.skipped == 2
    assert '3 of 5 images could be read' in caplog.text
    with pytest.raises(MediaError, match='no image can be decoded'):
        open_source(_write(tmp_path / 'none', bad))


@pytest.mark.parametrize('plugin', list(StoragePlugin))
def test_damaged_bag(tmp_path: Path, plugin: StoragePlugin) -> None:
    """A bag that was cut off or never was one gives one line."""
    path = _write(tmp_path / 'bag', _images(20), plugin)
    (storage,) = [item for item in path.iterdir() if item.suffix in ('.mcap', '.db3')]
    storage.write_bytes(storage.read_bytes()[:3000])
    with pytest.raises(MediaError, match=r'rosbag2|no image can be decoded') as raised:
        open_source(path)
    assert '\n' not in str(raised.value)
    (path / 'metadata.yaml').write_text('rosbag2_bagfile_information: 3')
    with pytest.raises(
        MediaError, match=r'cannot be read as a rosbag2 recording.*ros2 bag reindex'
    ):
        open_source(path)


def test_folder_without_metadata(tmp_path: Path) -> None:
    """A recorder that was killed has not written metadata.yaml; its only file tells as much."""
    path = _write(tmp_path / 'bag', _images(4), StoragePlugin.SQLITE3)
    (path / 'metadata.yaml').unlink()
    with open_source(path) as source:
        assert source.frame_count == len(list(source)) == 4
    (path / 'bag_1.db3').touch()
    with pytest.raises(MediaError, match='ros2 bag reindex'):
        open_source(path)


def _cdr(msgtype: str, message: Any) -> bytes:
    return bytes(STORE.serialize_cdr(message, msgtype))


def test_written_bag_is_complete(tmp_path: Path) -> None:
    """Messages, times, types with hash and definition, QoS: as ros2 bag would record them."""
    path = tmp_path / 'out' / 'bag'
    with BagWriter(path, [VENDORED]) as writer:
        writer.write('/image', IMAGE, 5 * MS, _cdr(IMAGE, _image(4 * MS, 9)))
        writer.write('/chat', TEXT, 6 * MS, _cdr(TEXT, _text('hello')), latched=True)
        writer.write('/chat', TEXT, 8 * MS, _cdr(TEXT, _text('world')), latched=True)
        assert not path.exists()
    assert sorted(item.name for item in path.iterdir()) == ['bag.mcap', 'metadata.yaml']
    with Reader(path) as reader:
        assert reader.message_count == 3
        assert (reader.start_time, reader.duration) == (5 * MS, 3 * MS + 1)
        written = [
            (connection.topic, time_ns, STORE.deserialize_cdr(data, connection.msgtype))
            for connection, time_ns, data in reader.messages()
        ]
        qos = {c.topic: c.ext.offered_qos_profiles[0] for c in reader.connections}
        for connection in reader.connections:
            assert connection.digest == STORE.hash_rihs01(connection.msgtype)
            types = get_types_from_msg(connection.msgdef.data, connection.msgtype)
            assert types[connection.msgtype][1] == STORE.fielddefs[connection.msgtype][1]
    assert [(topic, time_ns) for topic, time_ns, _ in written] == [
        ('/image', 5 * MS),
        ('/chat', 6 * MS),
        ('/chat', 8 * MS),
    ]
    assert written[2][2].data == 'world'
    assert qos['/chat'].durability is QosDurability.TRANSIENT_LOCAL
    assert qos['/image'].durability is QosDurability.VOLATILE
    with open_source(path) as source:
        assert next(source).stamp_ns == 4 * MS


@pytest.mark.parametrize(
    ('msgtype', 'type_hash'),
    [
        (
            'vision_msgs/msg/Detection2DArray',
            'RIHS01_214274120007f4a683866481336b70310268cfa107aebe9d594a6acf75bda968',
        ),
        (
            'diagnostic_msgs/msg/DiagnosticArray',
            STORE.hash_rihs01('diagnostic_msgs/msg/DiagnosticArray'),
        ),
    ],
)
def test_types_with_their_hash(tmp_path: Path, msgtype: str, type_hash: str) -> None:
    """Definitions of packages that rosbags does not know come from the share folders."""
    with BagWriter(tmp_path / 'bag', [VENDORED]) as writer:
        writer.write('/results', msgtype, 1, b'\0\1\0\0')
    with Reader(tmp_path / 'bag') as reader:
        (connection,) = reader.connections
    assert (connection.msgtype, connection.digest) == (msgtype, type_hash)


def test_definitions_of_the_sourced_workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package of one's own is found where `source install/setup.bash` says."""
    folder = tmp_path / 'install' / 'share' / 'my_msgs' / 'msg'
    folder.mkdir(parents=True)
    (folder / 'Outer.msg').write_text('Inner[] parts  # nested\nstd_msgs/Header header\n')
    (folder / 'Inner.msg').write_text('float64 MAXIMUM=1.5\nfloat64[3] values\n')
    with BagWriter(tmp_path / 'before') as writer:
        with pytest.raises(MediaError, match='my_msgs/msg/Outer: no definition'):
            writer.write('/mine', 'my_msgs/msg/Outer', 1, b'\0\1\0\0')
        writer.abort()
    monkeypatch.setenv('AMENT_PREFIX_PATH', f'/nowhere:{tmp_path / "install"}')
    with BagWriter(tmp_path / 'bag') as writer:
        writer.write('/mine', 'my_msgs/msg/Outer', 1, b'\0\1\0\0')
    with Reader(tmp_path / 'bag') as reader:
        definition = reader.connections[0].msgdef.data
    assert 'MSG: my_msgs/Inner' in definition
    assert 'MSG: std_msgs/Header' in definition


def test_bag_is_whole_or_absent(tmp_path: Path) -> None:
    """An exception or an abort leaves nothing; an existing bag is not touched."""
    with pytest.raises(KeyboardInterrupt), BagWriter(tmp_path / 'bag') as writer:
        writer.write('/chat', TEXT, 1, _cdr(TEXT, _text('x')))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with BagWriter(tmp_path / 'bag') as writer:
        writer.write('/chat', TEXT, 1, _cdr(TEXT, _text('x')))
        with pytest.raises(MediaError, match=r'/chat: is of type std_msgs/msg/String, not sensor'):
            writer.write('/chat', IMAGE, 1, b'')
    writer.close()
    with pytest.raises(MediaError, match='the bag is closed'):
        writer.write('/chat', TEXT, 1, b'')
    with pytest.raises(MediaError, match='exists already'):
        BagWriter(tmp_path / 'bag')
    assert [item.name for item in tmp_path.iterdir()] == ['bag']
