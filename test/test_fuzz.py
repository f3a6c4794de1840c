"""Whatever comes in from outside: a result, or the module's own error of one line.

What longer runs found is kept as an @example. For such a run:

    EDGE_PERCEPTION_FUZZ_EXAMPLES=5000 pytest test/test_fuzz.py --hypothesis-seed=1
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np
import pytest
from builtin_interfaces.msg import Time
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header
from vision_msgs.msg import Detection2D, Detection2DArray, ObjectHypothesisWithPose

from edge_perception.api.errors import RequestError
from edge_perception.api.images import check_image
from edge_perception.detection import DetectionError
from edge_perception.detection.backends import TensorSpec
from edge_perception.detection.canvas import Canvas
from edge_perception.detection.decode import (
    LAYOUT_NAMES,
    check_task,
    choose_layout,
    decode,
)
from edge_perception.detection.engine_file import read_engine, read_sidecar, sidecar_path
from edge_perception.detection.labels import load_labels, resolve_labels
from edge_perception.detection.nms import non_maximum_suppression
from edge_perception.media.bag import BagSource
from edge_perception.media.camera_info import load_camera_info
from edge_perception.media.errors import ImageConversionError, MediaError
from edge_perception.media.mot import read_mot
from edge_perception.media.pixels import SUPPORTED_ENCODINGS, decode_compressed
from edge_perception.ros import messages
from edge_perception.ros.images import compressed_to_frame, image_to_frame
from edge_perception.types import Frame

EXAMPLES = int(os.environ.get('EDGE_PERCEPTION_FUZZ_EXAMPLES', '60'))
fuzz = settings(max_examples=EXAMPLES)

# NumPy's warnings (overflow, invalid value) are findings too.
pytestmark = pytest.mark.filterwarnings('error')

STAMPS = st.builds(Time, sec=st.integers(-(2**31), 2**31 - 1), nanosec=st.integers(0, 2**32 - 1))
# What a string of a message can carry: no lone surrogates.
TEXTS = st.text(st.characters(codec='utf-8'), max_size=20)
HEADERS = st.builds(Header, stamp=STAMPS, frame_id=TEXTS)
FLOATS = st.floats(width=64) | st.sampled_from([0.0, -1.0, 1e300, -1e39, math.inf, math.nan])


@contextmanager
def only(*allowed: type[Exception]) -> Iterator[None]:
    """No exception but one of these, whose text is one line, may come out."""
    try:
        yield
    except allowed as error:
        text = str(error)
        assert text
        assert '\n' not in text
        assert len(text) < 2000


def mutated(original: bytes) -> st.SearchStrategy[bytes]:
    """A file that was overwritten in places, and maybe cut or prolonged."""

    def apply(edits: list[tuple[int, bytes]], cut: int | None, tail: bytes) -> bytes:
        content = bytearray(original)
        for position, piece in edits:
            start = position % len(content)
            content[start : start + len(piece)] = piece
        return bytes(content[: len(original) if cut is None else cut % len(original)]) + tail

    edits = st.lists(st.tuples(st.integers(0, 1 << 24), st.binary(max_size=8)), max_size=6)
    return st.builds(
        apply, edits, st.none() | st.integers(0, 1 << 24), st.just(b'') | st.binary(max_size=16)
    )


# Messages


@fuzz
@given(
    header=HEADERS,
    encoding=st.sampled_from([*SUPPORTED_ENCODINGS, '32FC1', '']) | TEXTS,
    height=st.integers(0, 2**32 - 1) | st.integers(0, 6),
    width=st.integers(0, 2**32 - 1) | st.integers(0, 6),
    step=st.integers(0, 2**32 - 1) | st.integers(0, 30),
    is_bigendian=st.integers(0, 255),
    data=st.binary(max_size=120),
    fitting=st.booleans(),
)
def test_image_messages(header, encoding, height, width, step, is_bigendian, data, fitting):
    if fitting and height * step <= 1000:
        rows = height + height // 2 if encoding.startswith('nv') else height
        data = (data * 1000 + bytes(1000))[: rows * step]
    message = Image(
        header=header, encoding=encoding, height=height, width=width, step=step,
        is_bigendian=is_bigendian, data=data,
    )  # fmt: skip
    with only(ImageConversionError):
        frame = image_to_frame(message)
        assert frame.image.shape == (height, width, 3)
        assert frame.stamp_ns == header.stamp.sec * 10**9 + header.stamp.nanosec


PICTURE = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
JPEG, PNG = (cv2.imencode(suffix, PICTURE)[1].tobytes() for suffix in ('.jpg', '.png'))


@fuzz
@given(
    data=mutated(JPEG) | mutated(PNG),
    image_format=st.sampled_from(['jpeg', 'png', 'bgr8; jpeg compressed bgr8']) | TEXTS,
)
def test_compressed_images_of_messages_and_requests(data, image_format):
    with only(ImageConversionError):
        message = CompressedImage(format=image_format, data=data)
        assert compressed_to_frame(message).image.ndim == 3
    # As the gateway does: nothing is decoded that is larger than allowed.
    with only(RequestError, ImageConversionError):
        check_image(data, 100_000)
        height, width = decode_compressed(data, oriented=True).shape[:2]
        assert height * width <= 100_000


@st.composite
def detection_arrays(draw: st.DrawFn) -> Detection2DArray:
    message = Detection2DArray(header=draw(HEADERS))
    found = []
    for _ in range(draw(st.integers(0, 3))):
        detection = Detection2D(
            id=draw(TEXTS | st.integers().map(str) | st.sampled_from(['1', '9' * 30, '9' * 5000]))
        )
        center = detection.bbox.center.position
        center.x, center.y = draw(FLOATS), draw(FLOATS)
        detection.bbox.size_x, detection.bbox.size_y = draw(FLOATS), draw(FLOATS)
        results = []
        for _ in range(draw(st.integers(0, 2))):
            result = ObjectHypothesisWithPose()
            result.hypothesis.class_id, result.hypothesis.score = draw(TEXTS), draw(FLOATS)
            results.append(result)
        detection.results = results
        found.append(detection)
    message.detections = found
    return message


@fuzz
@given(message=detection_arrays())
def test_detections_and_tracks_of_messages(message):
    for convert in (messages.message_to_detections, messages.message_to_tracks):
        with only(messages.MessageError):
            stamped = convert(message, messages.ClassNames())
            objects = stamped.value
            assert len(objects) == len(message.detections)
            assert np.isfinite(objects.xyxy).all()
            assert ((objects.score >= 0) & (objects.score <= 1)).all()
            header = messages.to_message(stamped).header
            assert messages.stamp_ns(header) == messages.stamp_ns(message.header)
            assert header.frame_id == message.header.frame_id


# Networks

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
ELEMENTS = st.floats(width=32) | st.floats(0, 1, width=32)


@fuzz
@given(
    output=arrays(
        np.float32,
        st.lists(st.integers(0, 9), max_size=4).map(tuple)
        | st.sampled_from([(1, 6, 20), (1, 7, 126), (1, 126, 7), (1, 378, 7), (1, 30, 6)]),
        elements=ELEMENTS,
        fill=ELEMENTS,
    ),
    layout=st.sampled_from(['auto', *LAYOUT_NAMES, 'v9']),
    class_count=st.integers(1, 3),
    threshold=st.sampled_from([0.0, 0.25, 1.0]),
    end2end=st.sampled_from(['True', 'False', 'yes', '']),
)
def test_outputs_of_networks(output, layout, class_count, threshold, end2end):
    with only(DetectionError):
        chosen = choose_layout(
            [output],
            class_count=class_count,
            canvas_hw=(64, 96),
            metadata={'end2end': end2end},
            override=layout,
        )
        for image_output in output:
            found = decode(image_output, chosen, canvas_hw=(64, 96), score_threshold=threshold)
            assert np.isfinite(found.boxes_xyxy).all()
            assert ((found.scores >= 0) & (found.scores <= 1)).all()
            kept = non_maximum_suppression(
                found.boxes_xyxy, found.scores, found.class_ids, iou_threshold=0.5
            )
            assert len(set(kept.tolist())) == len(kept) <= len(found.scores)


@fuzz
@given(
    boxes=arrays(np.float32, st.tuples(st.integers(0, 30), st.just(4)), elements=FINITE),
    data=st.data(),
)
def test_suppression_of_any_boxes(boxes, data):
    count = len(boxes)
    scores = data.draw(arrays(np.float32, count, elements=st.floats(2**-10, 1, width=32)))
    class_ids = data.draw(arrays(np.int32, count))
    kept = non_maximum_suppression(
        boxes, scores, class_ids, iou_threshold=data.draw(st.floats(0, 1)), max_candidates=10
    )
    assert len(set(kept.tolist())) == len(kept) <= min(count, 10)
    assert (count == 0) == (len(kept) == 0)


LITERALS = (
    TEXTS
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.integers() | TEXTS | st.floats(), inner, max_size=3)
        ),
    ).map(repr)
    | st.sampled_from(["{0: 'a', 1: 'b'}", "['a']", '640', '[640, 480]', '(', '1' * 5000])
)


@fuzz
@given(
    names=LITERALS, imgsz=LITERALS, stride=LITERALS, task=TEXTS | st.just('detect'),
    shape=st.tuples(*[st.none() | st.integers(1, 700)] * 2),
)  # fmt: skip
@example("{1e999: 'a'}", '640', '32', 'detect', (None, None))
@example('{[]: 1}', '[]', '0', 'detect', (None, None))
@example("['a']", '{}', '32', 'detect', (None, None))
@example("['a']", "['a', 'b']", '32', 'detect', (None, None))
@example("['a']", '1e999', '32', 'detect', (None, None))
@example("['a']", '-5', '32', 'detect', (None, None))
@example("['a']", '0', '32', 'detect', (None, None))
@example('[' * 5000, '[' * 5000, '32', 'detect', (None, None))
def test_metadata_of_models(names, imgsz, stride, task, shape):
    metadata = {'names': names, 'imgsz': imgsz, 'stride': stride, 'task': task}
    with only(DetectionError):
        check_task(metadata)
    with only(DetectionError):
        labels = resolve_labels(metadata, None)
        assert labels == dict(enumerate(labels.values()))
    with only(DetectionError):
        spec = TensorSpec('images', np.dtype(np.float32), (None, 3, *shape))
        canvas = Canvas.of(spec, metadata, None)
        assert min(canvas.image_hw) > 0
        assert canvas.stride > 0


# Files


@fuzz
@given(
    content=st.binary(max_size=60) | LITERALS.map(str.encode),
    suffix=st.sampled_from(['.txt', '.yaml']),
)
@example(b'names: {.inf: a}', '.yaml')
@example(b'2020-99-99', '.yaml')
@example(b'[' * 1200, '.yaml')
@example(b'{[]: 1}', '.yaml')
def test_files_of_labels_and_calibrations(tmp_path_factory, content, suffix):
    path = tmp_path_factory.getbasetemp() / f'fuzzed{suffix}'
    path.write_bytes(content)
    with only(DetectionError):
        labels = load_labels(path)
        assert labels == dict(enumerate(labels.values()))
    with only(MediaError):
        load_camera_info(path)


SIDECAR = json.dumps(
    {
        'tensorrt': 'tensorrt 10.3', 'gpu': '', 'compute_capability': '', 'onnx_name': 'a.onnx',
        'onnx_sha256': '0', 'engine_sha256': '0', 'precision': 'fp16', 'int8_method': '',
        'profile': {'min': [1, 3, 8, 8]}, 'labels': {'0': 'a'}, 'command': 'python x',
    }
).encode()  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
)


@fuzz
@given(
    engine=st.binary(max_size=60)
    | JSON.map(lambda value: json.dumps(value).encode()).map(
        lambda text: len(text).to_bytes(4, 'little') + text
    ),
    sidecar=mutated(SIDECAR)
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.tuples(st.sampled_from(sorted(json.loads(SIDECAR))), JSON).map(
        lambda item: json.dumps({**json.loads(SIDECAR), item[0]: item[1]}).encode()
    ),
)
@example((200000).to_bytes(4, 'little') + b'{"a":' * 40000, b'{"a":' * 40000)
@example(b'', json.dumps({**json.loads(SIDECAR), 'onnx_name': ''}).encode())
@example(b'', json.dumps({**json.loads(SIDECAR), 'onnx_name': '../a'}).encode())
@example(b'', json.dumps({**json.loads(SIDECAR), 'onnx_name': 5}).encode())
def test_engines_and_their_sidecars(tmp_path_factory, engine, sidecar):
    path = tmp_path_factory.getbasetemp() / 'fuzzed.engine'
    path.write_bytes(engine)
    sidecar_path(path).write_bytes(sidecar)
    with only(DetectionError):
        metadata, plan = read_engine(path)
        assert len(plan) <= len(engine)
        assert all(isinstance(value, str) for value in metadata.values())
    with only(DetectionError):
        found = read_sidecar(path)
        assert found is not None
        path.with_name(found.onnx_name)
        assert all(isinstance(size, int) for shape in found.profile.values() for size in shape)


ROW = st.lists(
    st.integers().map(str) | st.floats().map(str) | TEXTS | st.just('1'), min_size=5, max_size=10
).map(','.join)


@fuzz
@given(
    content=st.binary(max_size=80)
    | st.lists(ROW, max_size=4).map('\n'.join).map(str.encode)
    | mutated(b'1,1,10,20,30,40,0.9,-1,-1,-1\n2,1,11,20,30,40,0.9,-1,-1,-1\n')
)
@example(b'1e300,1,0,0,1,1,1')
@example(b'1,1e300,0,0,1,1,1')
@example(b'1,1,1e300,0,1e300,1,1')
@example(b'1,1,1e39,0,1,1,1')
@example(b'1,1,0,0,1,1,1e300')
def test_files_of_tracks(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / 'fuzzed.txt'
    path.write_bytes(content)
    with only(MediaError):
        table = read_mot(path)
        for frame in {*table.frame.tolist()}:
            found = table.detections(frame)
            assert len(found) > 0
            assert np.isfinite(found.xyxy).all()


@pytest.fixture(scope='module')
def bags(tmp_path_factory) -> dict[str, bytes]:
    """Three images and a calibration, as MCAP and as SQLite, by name of the file."""
    from rosbags.rosbag2 import StoragePlugin, Writer
    from rosbags.typesys import Stores, get_typestore

    folder = tmp_path_factory.mktemp('bags')
    store = get_typestore(Stores.ROS2_JAZZY)
    types = store.types
    header = types['std_msgs/msg/Header']
    stamp = types['builtin_interfaces/msg/Time']
    made = {}
    for name, plugin in (('mcap', StoragePlugin.MCAP), ('db3', StoragePlugin.SQLITE3)):
        with Writer(folder / name, version=8, storage_plugin=plugin) as writer:
            kind = 'sensor_msgs/msg/Image'
            topic = writer.add_connection('/image_raw', kind, typestore=store)
            for second in range(3):
                message = types[kind](
                    header=header(stamp=stamp(sec=second, nanosec=0), frame_id='camera'),
                    height=4, width=4, encoding='bgr8', is_bigendian=0, step=12,
                    data=np.arange(48, dtype=np.uint8),
                )  # fmt: skip
                writer.write(topic, second * 10**9, store.serialize_cdr(message, kind))
        (file,) = (folder / name).glob(f'*.{name}')
        made[name] = file.read_bytes()
    return made


@settings(max_examples=max(EXAMPLES // 2, 10))
@given(data=st.data(), kind=st.sampled_from(['mcap', 'db3']))
def test_bags(tmp_path_factory, bags, data, kind):
    path = tmp_path_factory.getbasetemp() / f'fuzzed.{kind}'
    path.write_bytes(data.draw(mutated(bags[kind])))
    with only(MediaError):
        source = BagSource(path)
        try:
            for _, frame in zip(range(10), source, strict=False):
                assert isinstance(frame, Frame)
                # What is published must fit a header.
                messages.make_header(frame.stamp_ns, frame.frame_id)
        finally:
            source.close()
