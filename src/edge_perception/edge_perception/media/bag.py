"""rosbag2 recordings, read and written through the library rosbags: no ROS installation needed."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rosbags.interfaces import (
    Connection,
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import Reader, StoragePlugin, Writer, WriterError
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from edge_perception.media.atomic import temporary_beside
from edge_perception.media.camera_info import CameraInfo
from edge_perception.media.errors import ImageConversionError, MediaError
from edge_perception.media.pixels import decode_compressed, to_bgr
from edge_perception.media.source import BAG_SUFFIXES, NANOSECONDS, RecordedSource
from edge_perception.types import Frame

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger(__name__)

IMAGE_TYPE = 'sensor_msgs/msg/Image'
COMPRESSED_IMAGE_TYPE = 'sensor_msgs/msg/CompressedImage'
CAMERA_INFO_TYPE = 'sensor_msgs/msg/CameraInfo'
_STAMPS_END_NS = 2**31 * NANOSECONDS
"""The seconds of a stamp have 32 bits; a time of recording may be beyond."""


def message_to_frame(message: Any, msgtype: str) -> Frame:
    """The frame in a deserialised sensor_msgs image of any library with ROS's field names.

    Args:
        message: a sensor_msgs/Image or CompressedImage.
        msgtype: which of the two, as `sensor_msgs/msg/Image`.

    Raises:
        ImageConversionError: it is malformed or of an encoding that is not supported.
    """
    if msgtype == COMPRESSED_IMAGE_TYPE:
        image = decode_compressed(message.data, message.format)
    else:
        image = to_bgr(
            message.data,
            message.encoding,
            message.height,
            message.width,
            message.step,
            bool(message.is_bigendian),
        )
    stamp = message.header.stamp
    return Frame(image, stamp.sec * NANOSECONDS + stamp.nanosec, message.header.frame_id)


def _storage(path: Path) -> Path:
    """What to open: the folder, or its only file where the recorder left no metadata.yaml."""
    if path.is_dir() and not (path / 'metadata.yaml').exists():
        files = [item for item in path.iterdir() if item.suffix in BAG_SUFFIXES]
        if len(files) == 1:
            return files[0]
    return path


class BagSource(RecordedSource):
    """The images of one topic of a rosbag2 recording, in order of recording.

    Stamps are those of the message headers; where a header has none (zero), the time of
    recording. Images that cannot be decoded are left out and counted in `skipped`.

    Args:
        path: the rosbag2 folder, or a single .mcap or .db3 file.
        image_topic: which topic; None works where there is only one. A topic that is there raw
            and compressed counts once, and is read raw.
        loop: begin again at the end.
        rate_hz: stamp frame i with first stamp + i / rate_hz instead.
        frame_id: of every frame; None leaves what the headers say.

    Raises:
        MediaError: no bag, a damaged one, no such image topic, several to choose from, or none
            of the images can be decoded.
    """

    def __init__(
        self,
        path: Path,
        *,
        image_topic: str | None = None,
        loop: bool = False,
        rate_hz: float | None = None,
        frame_id: str | None = None,
    ) -> None:
        super().__init__(loop=loop, rate_hz=rate_hz)
        self._path = path
        self._frame_id = frame_id
        self._typestore = get_typestore(Stores.ROS2_JAZZY)
        self._reported = False
        try:
            self._reader = Reader(_storage(path))
            self._reader.open()
        except Exception as error:  # the parser of a foreign file: it fails in many ways
            raise MediaError(
                f'{path}: cannot be read as a rosbag2 recording: {_line(error)} (one that was cut '
                f'off is repaired by `ros2 bag reindex`, an MCAP file by `mcap recover`)'
            ) from error
        try:
            self._connections = self._choose(image_topic)
            topic = self._connections[0].topic
            self._count = sum(connection.msgcount for connection in self._connections)
            duration_s = (self._reader.duration - 1) / NANOSECONDS
            if self._count > 1 and duration_s > 0:
                self.rate_hz = (self._count - 1) / duration_s
            self.camera_info = self._read_camera_info(topic)
        except MediaError:
            self._reader.close()
            raise
        self.description = f'{path} ({topic}, {self._count} images)'
        self._begin()

    @property
    def frame_count(self) -> int:
        """Messages on the image topic."""
        return self._count

    def _choose(self, image_topic: str | None) -> list[Connection]:
        """The connections of the wanted topic; there is one for each QoS it was offered with."""
        images = [
            connection
            for connection in self._reader.connections
            if connection.msgtype in (IMAGE_TYPE, COMPRESSED_IMAGE_TYPE)
            and not connection.topic.endswith('/compressedDepth')
        ]
        topics = sorted({connection.topic for connection in images})
        if image_topic is None:
            candidates = [
                topic
                for topic in topics
                if not (
                    topic.endswith('/compressed') and topic.removesuffix('/compressed') in topics
                )
            ]
            if not candidates:
                others = sorted({f'{c.topic} ({c.msgtype})' for c in self._reader.connections})
                raise MediaError(
                    f'{self._path}: has no image topic; its topics: {", ".join(others) or "none"}'
                )
            if len(candidates) > 1:
                raise MediaError(
                    f'{self._path}: has several image topics, choose one by image_topic: '
                    f'{", ".join(candidates)}'
                )
            wanted = candidates[0]
        else:
            wanted = '/' + image_topic.strip('/')
            if wanted not in topics and f'{wanted}/compressed' in topics:
                wanted = f'{wanted}/compressed'
            if wanted not in topics:
                raise MediaError(
                    f'{self._path}: has no image topic {image_topic}; its image topics: '
                    f'{", ".join(topics) or "none"}'
                )
        return [connection for connection in images if connection.topic == wanted]

    def _read_camera_info(self, image_topic: str) -> CameraInfo | None:
        """The first calibration on the topic that image_transport pairs with the images."""
        namespace = image_topic.removesuffix('/compressed').rpartition('/')[0]
        connections = [
            connection
            for connection in self._reader.connections
            if connection.topic == f'{namespace}/camera_info'
            and connection.msgtype == CAMERA_INFO_TYPE
        ]
        if not connections:
            return None
        try:
            _, _, data = next(self._reader.messages(connections))
            message: Any = self._typestore.deserialize_cdr(data, CAMERA_INFO_TYPE)
            return CameraInfo(
                width=message.width,
                height=message.height,
                k=tuple(message.k.tolist()),
                d=tuple(message.d.tolist()),
                r=tuple(message.r.tolist()),
                p=tuple(message.p.tolist()),
                distortion_model=message.distortion_model,
                frame_id=message.header.frame_id,
            )
        except StopIteration:
            return None
        except Exception as error:
            logger.warning('%s: camera_info cannot be read: %s', self._path, _line(error))
            return None

    def _read_round(self) -> Iterator[Frame]:
        messages = self._reader.messages(self._connections)
        delivered = 0
        skipped_because = stopped_because = ''
        self.skipped = 0
        while True:
            try:
                item = next(messages, None)
            except Exception as error:
                stopped_because = _line(error)
                break
            if item is None:
                break
            connection, recorded_ns, data = item
            try:
                message = self._typestore.deserialize_cdr(data, connection.msgtype)
                frame = message_to_frame(message, connection.msgtype)
                if not frame.stamp_ns and recorded_ns >= _STAMPS_END_NS:
                    raise ImageConversionError(f'recorded at {recorded_ns} ns: no stamp says that')
            except ImageConversionError as error:
                skipped_because = str(error)
                self.skipped += 1
                continue
            except Exception as error:
                skipped_because = f'not a {connection.msgtype}: {_line(error)}'
                self.skipped += 1
                continue
            delivered += 1
            if self._frame_id is not None or not frame.stamp_ns:
                frame = Frame(
                    frame.image,
                    frame.stamp_ns or recorded_ns,
                    frame.frame_id if self._frame_id is None else self._frame_id,
                )
            yield frame
        problem = stopped_because or skipped_because
        if problem and not delivered:
            raise MediaError(f'{self.description}: no image can be decoded: {problem}')
        if problem and not self._reported:
            self._reported = True
            logger.warning(
                '%s: %d of %d images could be read: %s',
                self._path,
                delivered,
                self._count,
                problem,
            )

    def _release(self) -> None:
        self._reader.close()


class BagWriter:
    """Writes a rosbag2 folder (MCAP); it appears, whole, when it is closed.

    `ros2 bag` (Humble and later) and Foxglove read it: every topic carries its message
    definition and the QoS to play it with. A context manager: leaving it by an exception drops
    what was written.

    Args:
        path: the folder, which must not exist.
        share_folders: folders that hold `<package>/msg/<Name>.msg`; looked through before those
            of the sourced ROS installation (AMENT_PREFIX_PATH) and the definitions of Jazzy's
            common packages that rosbags brings.

    Raises:
        MediaError: the folder exists, or its parent cannot be written.
    """

    def __init__(self, path: str | Path, share_folders: Sequence[Path] = ()) -> None:
        self._path = Path(path)
        if self._path.exists():
            raise MediaError(f'{path}: exists already; bags are not overwritten')
        prefixes = os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep)
        self._share_folders = [
            *share_folders,
            *(Path(prefix, 'share') for prefix in prefixes if prefix),
        ]
        self._typestore = get_typestore(Stores.EMPTY)
        self._common_types = get_typestore(Stores.ROS2_JAZZY)
        self._connections: dict[str, Connection] = {}
        self._temporary = temporary_beside(self._path)
        # Version 8 is the newest that distributions before Jazzy understand.
        self._writer: Writer | None = Writer(
            self._temporary / self._path.name, version=8, storage_plugin=StoragePlugin.MCAP
        )
        try:
            self._writer.open()
        except (OSError, WriterError) as error:
            shutil.rmtree(self._temporary, ignore_errors=True)
            raise MediaError(f'{path}: cannot be written: {_line(error)}') from error

    def write(
        self, topic: str, msgtype: str, stamp_ns: int, cdr: bytes, *, latched: bool = False
    ) -> None:
        """Add one message.

        Args:
            topic: full name of the topic.
            msgtype: its type, as `sensor_msgs/msg/Image`.
            stamp_ns: time of recording.
            cdr: the serialised message, as a raw subscription delivers it.
            latched: the publisher keeps its last message for late joiners (transient local);
                what the first message of a topic says counts.

        Raises:
            MediaError: the writer is closed, the message type is unknown, the topic had another
                type, or the disk is full.
        """
        if self._writer is None:
            raise MediaError(f'{self._path}: the bag is closed')
        connection = self._connections.get(topic)
        if connection is None:
            self._register(msgtype)
            connection = self._writer.add_connection(
                topic,
                msgtype,
                typestore=self._typestore,
                offered_qos_profiles=[_offered_qos(latched)],
            )
            self._connections[topic] = connection
        elif connection.msgtype != msgtype:
            raise MediaError(f'{topic}: is of type {connection.msgtype}, not {msgtype}')
        try:
            self._writer.write(connection, stamp_ns, cdr)
        except OSError as error:
            raise MediaError(f'{self._path}: cannot be written: {_line(error)}') from error

    def _register(self, msgtype: str) -> None:
        """Make a message type and all that it is made of known to the typestore."""
        if msgtype in self._typestore.fielddefs:
            return
        package, _, name = msgtype.split('/')
        for folder in self._share_folders:
            definition = folder / package / 'msg' / f'{name}.msg'
            if definition.is_file():
                types = get_types_from_msg(definition.read_text(encoding='utf-8'), msgtype)
                break
        else:
            if msgtype not in self._common_types.fielddefs:
                raise MediaError(
                    f'{msgtype}: no definition {package}/msg/{name}.msg in '
                    f'{", ".join(map(str, self._share_folders)) or "any folder"}; source the '
                    f'workspace that has this package'
                )
            types = {msgtype: self._common_types.fielddefs[msgtype]}
        self._typestore.register(types)
        for _, fields in types.values():
            for _, description in fields:
                for nested in _message_names(description):
                    self._register(nested)

    def close(self) -> None:
        """Put the bag in its place; nothing happens the second time.

        Raises:
            MediaError: the disk is full, or the folder has come to exist meanwhile.
        """
        writer, self._writer = self._writer, None
        if writer is None:
            return
        try:
            writer.close()
            os.rename(self._temporary / self._path.name, self._path)
        except OSError as error:
            raise MediaError(f'{self._path}: cannot be written: {_line(error)}') from error
        finally:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def abort(self) -> None:
        """Drop what was written; nothing happens after `close`."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.abort()
            shutil.rmtree(self._temporary, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *rest: object) -> None:
        if exc_type is None:
            self.close()
        else:
            self.abort()


def _message_names(description: Any) -> Iterator[str]:
    """Names of the message types in a field description of rosbags, which nests (kind, rest)."""
    kind, rest = description
    if kind.name == 'NAME':
        yield rest
    elif kind.name in ('ARRAY', 'SEQUENCE'):
        yield from _message_names(rest[0])


def _offered_qos(latched: bool) -> Qos:
    unlimited = QosTime(0, 0)
    return Qos(
        history=QosHistory.KEEP_LAST,
        depth=1 if latched else 10,
        reliability=QosReliability.RELIABLE,
        durability=QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE,
        deadline=unlimited,
        lifespan=unlimited,
        liveliness=QosLiveliness.AUTOMATIC,
        liveliness_lease_duration=unlimited,
        avoid_ros_namespace_conventions=False,
    )


def _line(error: Exception) -> str:
    """The text of a foreign error on one line."""
    return ' '.join(str(error).split()) or type(error).__name__
