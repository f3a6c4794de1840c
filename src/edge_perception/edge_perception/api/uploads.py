"""Reads the form of a /detect request, within limits and in memory."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from edge_perception.api.errors import RequestError
from edge_perception.api.pipeline import DetectOptions

MAX_FIELDS = 32
MAX_FIELD_BYTES = 4096
MAX_OPTION_LENGTH = 1024


class _InMemoryParser(MultiPartParser):
    """Keeps files in memory: they are small enough, and a disk may be read-only or slow."""

    spool_max_size = 1 << 62


async def read_upload(
    request: Request, *, max_body_bytes: int, timeout_s: float
) -> tuple[bytes, DetectOptions]:
    """The image file and the options of a /detect request.

    Args:
        request: whose body was not read yet.
        max_body_bytes: of the whole body.
        timeout_s: for all of it to arrive.

    Raises:
        RequestError: 400, 408, 413, 415 or 422.
    """
    content_type = request.headers.get('content-type', '')
    if content_type.split(';')[0].strip().lower() != 'multipart/form-data':
        raise RequestError(415, 'send a form (multipart/form-data) with the image in field `file`')
    too_large = RequestError(
        413, f'the request is larger than {max_body_bytes / 2**20:g} MiB, which is the limit'
    )
    length = request.headers.get('content-length', '')
    if length.isdecimal() and int(length) > max_body_bytes:
        raise too_large

    async def body() -> AsyncGenerator[bytes, None]:
        received = 0
        async for chunk in request.stream():
            received += len(chunk)
            if received > max_body_bytes:
                raise too_large
            yield chunk

    try:
        return await asyncio.wait_for(_parse(request.headers, body()), timeout_s)
    except asyncio.TimeoutError:
        raise RequestError(408, f'the request did not arrive within {timeout_s:g} s') from None
    except MultiPartException as error:
        raise RequestError(400, f'the form is malformed: {_line(error.message)}') from error
    except ClientDisconnect as error:
        raise RequestError(400, 'the request ended early') from error


async def _parse(
    headers: Headers, body: AsyncGenerator[bytes, None]
) -> tuple[bytes, DetectOptions]:
    parser = _InMemoryParser(
        headers, body, max_files=1, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES
    )
    form = await parser.parse()
    try:
        file = form.get('file')
        if not isinstance(file, UploadFile):
            raise RequestError(422, 'file: the image is missing; send it as a file in this field')
        options = DetectOptions(
            score_threshold=_score(form.get('score_threshold')),
            classes=tuple(
                name.strip()
                for text in form.getlist('classes')
                for name in _text('classes', text).split(',')
                if name.strip()
            ),
            backend=_text('backend', form.get('backend', '')).strip(),
        )
        data = await file.read()
    finally:
        await form.close()
    if not data:
        raise RequestError(422, 'file: it is empty')
    return data, options


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or len(value) > MAX_OPTION_LENGTH or not value.isprintable():
        raise RequestError(422, f'{name}: expected a short text')
    return value


def _score(value: object) -> float | None:
    if value is None or value == '':
        return None
    try:
        score = float(_text('score_threshold', value))
    except ValueError:
        score = math.nan
    if not 0.0 <= score <= 1.0:
        raise RequestError(422, 'score_threshold: expected a number from 0 to 1')
    return score


def _line(text: str) -> str:
    return ' '.join(str(text).split())
