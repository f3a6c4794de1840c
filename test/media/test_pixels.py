"""Bytes of image messages to BGR."""

from __future__ import annotations

import array
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_perception.media.errors import ImageConversionError
from edge_perception.media.pixels import SUPPORTED_ENCODINGS, decode_compressed, to_bgr

from .encodings import HEIGHT, SAMPLES, WIDTH, assert_shows


def test_every_encoding_has_a_reference() -> None:
    """No conversion goes untested."""
    assert {name.split()[0] for name in SAMPLES} == set(SUPPORTED_ENCODINGS)


@pytest.mark.parametrize('padding', [0, 1, 48])
@pytest.mark.parametrize('name', SAMPLES)
def test_encoding(name: str, padding: int) -> None:
    """Colours come out as the standard says; bytes after the end of a row do not matter."""
    sample = SAMPLES[name]()
    data, step = sample.padded(padding)
    image = to_bgr(data, name.split()[0], HEIGHT, WIDTH, step, sample.is_bigendian)
    assert_shows(image, sample)


@pytest.mark.parametrize('kind', [bytes, bytearray, lambda b: array.array('B', b), np.frombuffer])
@pytest.mark.parametrize('encoding', ['bgr8', 'mono8', 'nv12'])
def test_any_buffer(kind: Any, encoding: str) -> None:
    """Live messages carry array.array, bags ndarray, others bytes."""
    sample = SAMPLES[encoding]()
    data, step = sample.padded(0)
    buffer = kind(data, np.uint8) if kind is np.frombuffer else kind(data)
    assert_shows(to_bgr(buffer, encoding, HEIGHT, WIDTH, step), sample)


def test_bgr_is_not_copied() -> None:
    """The image is the message's memory, which stays alive with it."""
    data = array.array('B', bytes(range(36)))
    image = to_bgr(data, 'bgr8', 3, 4, 12)
    assert np.shares_memory(image, np.frombuffer(data, np.uint8))
    del data
    assert image.ravel().tolist() == list(range(36))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ((bytes(48), '16UC1', 4, 6, 12), "cannot convert encoding '16UC1'; supported: bgr8"),
        ((bytes(48), '', 4, 4, 12), "cannot convert encoding ''; supported"),
        ((b'', 'bgr8', 0, 4, 12), 'an image of 4 x 0 pixels'),
        ((b'', 'bgr8', 4, 0, 0), 'an image of 0 x 4 pixels'),
        ((bytes(48), 'bgr8', 4, 5, 12), 'step is 12 bytes, but 5 pixels of bgr8 take 15'),
        ((bytes(48), 'mono16', 4, 4, 4), 'step is 4 bytes, but 4 pixels of mono16 take 8'),
        ((bytes(47), 'bgr8', 4, 4, 12), '47 bytes of data, but 4 rows of 12 bytes are 48'),
        ((bytes(49), 'bgr8', 4, 4, 12), '49 bytes of data, but 4 rows of 12 bytes are 48'),
        ((b'', 'bgr8', 4, 4, 12), '0 bytes of data, but 4 rows of 12 bytes are 48'),
        ((bytes(16), 'nv12', 4, 4, 4), '16 bytes of data, but 6 rows of 4 bytes are 24'),
        ((bytes(24), 'nv12', 3, 4, 4), 'nv12 needs an even height, got 3'),
        ((bytes(24), 'nv21', 4, 3, 4), 'nv21 needs an even width, got 3'),
        ((bytes(24), 'uyvy', 4, 3, 6), 'uyvy needs an even width, got 3'),
        ((bytes(4), 'bayer_rggb8', 2, 2, 2), 'bayer_rggb8 needs 3 x 3 pixels or more, got 2 x 2'),
    ],
)
def test_malformed_image(arguments: tuple[Any, ...], message: str) -> None:
    """One line says which number does not fit."""
    with pytest.raises(ImageConversionError, match=message):
        to_bgr(*arguments)


@given(
    encoding=st.sampled_from([*SUPPORTED_ENCODINGS, '32FC1', 'rgb', '']),
    height=st.integers(0, 9),
    width=st.integers(0, 9),
    step=st.integers(0, 40) | st.just(2**32 - 1),
    size=st.none() | st.integers(0, 400),
    is_bigendian=st.booleans(),
)
def test_only_one_kind_of_error(
    encoding: str, height: int, width: int, step: int, size: int | None, is_bigendian: bool
) -> None:
    """Whatever the numbers are, there is an image of that size or an ImageConversionError."""
    rows = height + height // 2 if encoding.startswith('nv') else height
    data = bytes(min(rows * step, 1000) if size is None else size)
    try:
        image = to_bgr(data, encoding, height, width, step, is_bigendian)
    except ImageConversionError as error:
        assert '\n' not in str(error)
    else:
        assert image.shape == (height, width, 3)


def _encoded(extension: str) -> bytes:
    image = cv2.GaussianBlur(
        np.random.default_rng(0).integers(0, 256, (24, 32, 3)).astype(np.uint8), (0, 0), 2
    )
    return bytes(cv2.imencode(extension, image)[1])


JPEG, PNG = _encoded('.jpg'), _encoded('.png')


@pytest.mark.parametrize('image_format', ['jpeg', 'jpg', 'rgb8; jpeg compressed bgr8', ''])
def test_jpeg(image_format: str) -> None:
    """A JPEG is BGR whatever encoding the camera once had."""
    expected = cv2.imdecode(np.frombuffer(JPEG, np.uint8), cv2.IMREAD_COLOR)
    data = array.array('B', JPEG)
    np.testing.assert_array_equal(decode_compressed(data, image_format), expected)


@pytest.mark.parametrize(
    ('image', 'expected'),
    [
        (np.full((4, 5, 3), (1, 2, 3), np.uint8), (1, 2, 3)),
        (np.full((4, 5, 4), (1, 2, 3, 99), np.uint8), (1, 2, 3)),
        (np.full((4, 5), 7, np.uint8), (7, 7, 7)),
        (np.full((4, 5), 7 << 8, np.uint16), (7, 7, 7)),
    ],
    ids=['colour', 'alpha', 'gray', '16 bit'],
)
def test_png(image: np.ndarray, expected: tuple[int, ...]) -> None:
    """Lossless: every kind of pixel becomes exactly its BGR."""
    decoded = decode_compressed(bytes(cv2.imencode('.png', image)[1]), 'bgr8; png compressed ')
    np.testing.assert_array_equal(decoded, np.full((4, 5, 3), expected, np.uint8))


def test_padding_after_the_end_is_no_damage() -> None:
    """Cameras fill their buffers up."""
    expected = decode_compressed(JPEG)
    np.testing.assert_array_equal(decode_compressed(JPEG + bytes(100)), expected)


def test_preview_does_not_hide_a_truncation() -> None:
    """An embedded JPEG ends with the same mark as the image around it."""
    segment = b'\xff\xe1' + (len(JPEG) + 2).to_bytes(2, 'big') + JPEG
    whole = JPEG[:2] + segment + JPEG[2:]
    np.testing.assert_array_equal(decode_compressed(whole), decode_compressed(JPEG))
    with pytest.raises(ImageConversionError, match='truncated'):
        decode_compressed(whole[:-50])


def test_orientation_is_not_applied() -> None:
    """A note in the file that it should be turned must not move pixels against the calibration."""
    exif = b'Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0'
    segment = b'\xff\xe1' + (len(exif) + 2).to_bytes(2, 'big') + exif
    turned = JPEG[:2] + segment + JPEG[2:]
    read_upright = cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR)
    assert read_upright.shape == (32, 24, 3)  # the note is understood by those who look
    np.testing.assert_array_equal(decode_compressed(turned), decode_compressed(JPEG))


@pytest.mark.parametrize('data', [JPEG, PNG], ids=['jpeg', 'png'])
def test_every_truncation_is_noticed(data: bytes) -> None:
    """OpenCV fills the missing part with grey; that must not pass as an image."""
    for size in range(len(data)):
        with pytest.raises(ImageConversionError):
            decode_compressed(data[:size], 'jpeg')


@pytest.mark.parametrize(
    ('data', 'image_format', 'message'),
    [
        (b'', 'jpeg', "0 bytes of format 'jpeg' are neither JPEG nor PNG"),
        (b'GIF89a' + bytes(30), 'gif', "36 bytes of format 'gif' are neither JPEG nor PNG"),
        (PNG, '16UC1; compressedDepth png', 'is a depth image'),
        (JPEG[:-2], 'jpeg', 'the JPEG is truncated'),
        (PNG[:-8], 'png', 'the PNG is truncated'),
        (PNG[:60] + bytes(40) + PNG[100:], 'png', 'the PNG cannot be decoded'),
    ],
)
def test_malformed_compressed_image(data: bytes, image_format: str, message: str) -> None:
    """The error says what it is not."""
    with pytest.raises(ImageConversionError, match=message):
        decode_compressed(data, image_format)


@given(
    data=st.sampled_from([JPEG, PNG]),
    edits=st.lists(st.tuples(st.integers(0, 3000), st.binary(max_size=4)), max_size=4),
)
def test_damaged_files_raise_one_kind_of_error(
    data: bytes, edits: list[tuple[int, bytes]]
) -> None:
    """Overwritten bytes give an image or an ImageConversionError, never anything else."""
    damaged = bytearray(data)
    for position, replacement in edits:
        start = position % len(damaged)
        damaged[start : start + len(replacement)] = replacement
    # The size is kept: a header that claims gigabytes is the allocator's matter.
    for marker in (b'\xff\xc0', b'IHDR'):
        start = data.find(marker)
        if start >= 0:
            damaged[start : start + 16] = data[start : start + 16]
    try:
        image = decode_compressed(bytes(damaged))
    except ImageConversionError as error:
        assert '\n' not in str(error)
    else:
        assert image.dtype == np.uint8
        assert image.shape[2] == 3
