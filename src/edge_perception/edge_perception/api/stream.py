"""One video stream for all viewers: encoded once, and slow viewers miss frames."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

BOUNDARY = 'frame'
MEDIA_TYPE = f'multipart/x-mixed-replace; boundary={BOUNDARY}'


class Broadcast:
    """Hands the newest JPEG to every viewer. To be used on the event loop."""

    def __init__(self) -> None:
        self.viewers = 0
        self._part = b''
        self._number = 0
        self._news = asyncio.Event()
        self._closed = False

    def publish(self, jpeg: bytes, stamp_ns: int) -> None:
        """Make a picture the newest one."""
        head = (
            f'--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n'
            f'X-Stamp-Ns: {stamp_ns}\r\n\r\n'
        )
        self._part = head.encode() + jpeg + b'\r\n'
        self._number += 1
        news, self._news = self._news, asyncio.Event()
        news.set()

    def close(self) -> None:
        """End every stream."""
        self._closed = True
        self._news.set()

    async def view(self) -> AsyncGenerator[bytes, None]:
        """The parts of one viewer's stream, each the newest picture when it is asked for."""
        seen = self._number
        self.viewers += 1
        try:
            while not self._closed:
                if seen == self._number:
                    await self._news.wait()
                    continue
                seen = self._number
                yield self._part
        finally:
            self.viewers -= 1
            if not self.viewers:
                self._part = b''
