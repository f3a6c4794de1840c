"""The size of an image file, read from its header before anything is decoded."""

from __future__ import annotations

import struct

from edge_perception.api.errors import RequestError

_PNG_SIGNATURE = b'\x89PNG\r\n\x1a\n'
_JPEG_START = b'\xff\xd8\xff'
# Start-of-frame markers, which carry the size (ITU-T T.81, table B.1).
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_SCAN = b'\xff\xda'
# Each scan of a progressive JPEG goes over all pixels again. Encoders write about ten.
MAX_SCANS = 100


def check_image(data: bytes, max_pixels: int) -> None:
    """Refuse a file that is no image, or that would decode into too much.

    Args:
        data: the whole file.
        max_pixels: that an image may have.

    Raises:
        RequestError: 415 for another type, 413 for too many pixels, 400 for a damaged header.
    """
    if data.startswith(_PNG_SIGNATURE):
        kind, (width, height) = 'PNG', _png_size(data)
    elif data.startswith(_JPEG_START):
        kind, (width, height) = 'JPEG', _jpeg_size(data)
        if data.count(_JPEG_SCAN) > MAX_SCANS:
            raise RequestError(400, f'the JPEG has more than {MAX_SCANS} scans')
    else:
        raise RequestError(415, 'file: neither JPEG nor PNG')
    if not width or not height:
        raise RequestError(400, f'the {kind} has no pixels: {width} x {height}')
    if width * height > max_pixels:
        raise RequestError(
            413,
            f'the image has {width} x {height} pixels, which is {width * height / 1e6:.0f} '
            f'megapixels; at most {max_pixels / 1e6:g} are taken',
        )


def _png_size(data: bytes) -> tuple[int, int]:
    # The header chunk comes first (PNG, 11.2.2).
    if len(data) < 24 or data[12:16] != b'IHDR':
        raise RequestError(400, 'the PNG is damaged: it has no header')
    width, height = struct.unpack('>II', data[16:24])
    return width, height


def _jpeg_size(data: bytes) -> tuple[int, int]:
    position = 2
    while position + 9 <= len(data):
        if data[position] != 0xFF:
            break
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack('>HH', data[position + 5 : position + 9])
            return width, height
        position += 2 + int.from_bytes(data[position + 2 : position + 4], 'big')
    raise RequestError(400, 'the JPEG is damaged: it has no frame header')
