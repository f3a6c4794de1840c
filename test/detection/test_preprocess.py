from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_perception.detection import InputSizeError
from edge_perception.detection.preprocess import (
    LetterboxGeometry,
    Preprocessor,
    resized_hw,
)

sides = st.integers(min_value=1, max_value=4000)


def image_of(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def plain_letterbox(image: np.ndarray, canvas_hw: tuple[int, int], limit_hw) -> np.ndarray:
    """The obvious slow way: resize, paste on grey, swap channels, transpose, divide."""
    height, width = resized_hw(image.shape[:2], limit_hw)
    canvas = np.full((*canvas_hw, 3), 114, np.uint8)
    top, left = (canvas_hw[0] - height) // 2, (canvas_hw[1] - width) // 2
    canvas[top : top + height, left : left + width] = cv2.resize(image, (width, height))
    return canvas[:, :, ::-1].transpose(2, 0, 1).astype(np.float32) / 255


@pytest.mark.parametrize(
    ('frame_hw', 'limit', 'rectangular', 'canvas_hw'),
    [
        pytest.param((720, 1280), 640, False, (640, 640), id='square canvas'),
        pytest.param((720, 1280), 640, True, (384, 640), id='wide frame, 360 rounds up'),
        pytest.param((1280, 720), 640, True, (640, 384), id='tall frame'),
        pytest.param((576, 768), 416, True, (320, 416), id='312 rounds up'),
        pytest.param((640, 640), 640, True, (640, 640), id='as it is'),
        pytest.param((10, 2000), 640, True, (32, 640), id='a strip is one stride high'),
        pytest.param((1, 1), 64, True, (64, 64), id='one pixel is enlarged'),
    ],
)
def test_blob_is_the_letterboxed_frame(frame_hw, limit, rectangular, canvas_hw):
    image = image_of(*frame_hw)
    blob, _ = Preprocessor((limit, limit), rectangular=rectangular)([image])
    assert blob.shape == (1, 3, *canvas_hw)
    assert blob.dtype == np.float32
    assert blob.flags.c_contiguous
    np.testing.assert_allclose(
        blob[0], plain_letterbox(image, canvas_hw, (limit, limit)), atol=1e-6
    )


def test_batch_of_different_sizes_shares_the_smallest_canvas_that_holds_them():
    images = [image_of(720, 1280), image_of(480, 640), image_of(90, 300)]
    blob, geometries = Preprocessor((640, 640), rectangular=True)(images)
    assert blob.shape == (3, 3, 480, 640)
    assert [(g.height, g.width, g.top, g.left) for g in geometries] == [
        (360, 640, 60, 0),
        (480, 640, 0, 0),
        (192, 640, 144, 0),
    ]
    for image, planes in zip(images, blob, strict=True):
        np.testing.assert_allclose(
            planes, plain_letterbox(image, (480, 640), (640, 640)), atol=1e-6
        )


def test_memory_is_kept_between_calls_and_stale_pixels_are_not():
    preprocess = Preprocessor((320, 320))
    wide, tall = image_of(100, 200, 1), image_of(200, 100, 2)
    first, _ = preprocess([wide])
    address = first.ctypes.data
    for image in (tall, wide, wide, tall):
        blob, _ = preprocess([image])
        assert blob.ctypes.data == address
        np.testing.assert_allclose(
            blob[0], plain_letterbox(image, (320, 320), (320, 320)), atol=1e-6
        )


def test_raw_bgr_values_for_networks_that_want_them():
    image = image_of(64, 64)
    blob, _ = Preprocessor((64, 96), scale=1.0, rgb=False)([image])
    np.testing.assert_array_equal(blob[0, :, :, 16:80], image.transpose(2, 0, 1))
    assert (blob[0, :, :, :16] == 114).all()


def test_uint8_blob_for_networks_that_normalise_themselves():
    image = image_of(64, 64)
    blob, _ = Preprocessor((64, 64), scale=1.0, dtype=np.uint8)([image])
    assert blob.dtype == np.uint8
    np.testing.assert_array_equal(blob[0], image[:, :, ::-1].transpose(2, 0, 1))


def test_frame_that_is_a_view_with_gaps_between_rows():
    wide = image_of(64, 200)
    view = wide[:, 50:114]
    blob, _ = Preprocessor((64, 64))([view])
    np.testing.assert_allclose(blob[0] * 255, view[:, :, ::-1].transpose(2, 0, 1), atol=1e-4)


@pytest.mark.parametrize(
    'view',
    [lambda i: i[::-1], lambda i: i[:, ::-1], lambda i: i[:, :, ::-1], lambda i: i[::2, ::2]],
    ids=['upside down', 'mirrored', 'channels swapped', 'every second pixel'],
)
def test_frame_that_is_any_view(view):
    image = view(image_of(100, 140))
    blob, _ = Preprocessor((64, 64))([image])
    np.testing.assert_array_equal(blob, Preprocessor((64, 64))([image.copy()])[0])


def test_fixed_batch_has_more_rows_than_frames():
    blob, geometries = Preprocessor((64, 64))([image_of(64, 64)], batch=4)
    assert blob.shape == (4, 3, 64, 64)
    assert len(geometries) == 1


@pytest.mark.parametrize('size', [(100, 640), (640, 650), (0, 32), (-32, 32)])
def test_size_off_the_stride_is_refused(size):
    with pytest.raises(InputSizeError, match='no multiple of the stride 32'):
        Preprocessor(size)


def test_refusal_names_the_next_size():
    with pytest.raises(InputSizeError, match='640x672 is the next'):
        Preprocessor((640, 650))


@given(height=sides, width=sides, size=st.integers(1, 40).map(lambda n: n * 32))
def test_resized_frame_fits_and_fills_one_side(height, width, size):
    new_h, new_w = resized_hw((height, width), (size, size))
    assert 1 <= new_h <= size
    assert 1 <= new_w <= size
    assert size in (new_h, new_w)


@given(
    height=sides,
    width=sides,
    size=st.integers(1, 40).map(lambda n: n * 32),
    corners=st.lists(st.floats(0, 1), min_size=4, max_size=4),
)
def test_boxes_come_back_from_the_canvas(height, width, size, corners):
    geometry = LetterboxGeometry.fit((height, width), (size, size), (size, size))
    box = np.array([corners], np.float32) * np.array([width, height] * 2, np.float32)
    there = geometry.boxes_to_canvas(box)
    back = geometry.boxes_to_frame(there)
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, box, atol=1e-3 * max(height, width, size) / 100 + 1e-3)


@given(height=sides, width=sides)
def test_whole_frame_is_the_whole_resized_image(height, width):
    geometry = LetterboxGeometry.fit((height, width), (640, 640), (640, 640))
    on_canvas = np.array(
        [
            [
                geometry.left,
                geometry.top,
                geometry.left + geometry.width,
                geometry.top + geometry.height,
            ]
        ],
        np.float32,
    )
    np.testing.assert_allclose(
        geometry.boxes_to_frame(on_canvas), [[0, 0, width, height]], rtol=1e-5
    )


def test_boxes_are_clipped_to_the_frame():
    geometry = LetterboxGeometry.fit((360, 640), (640, 640), (640, 640))
    boxes = geometry.boxes_to_frame(np.array([[-50, 0, 900, 640]], np.float32))
    np.testing.assert_array_equal(boxes, [[0, 0, 640, 360]])
