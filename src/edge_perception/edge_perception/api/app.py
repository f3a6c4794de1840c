"""The HTTP interface: a FastAPI application over a Pipeline."""

from __future__ import annotations

import asyncio
import hmac
import math
import time
from collections import Counter
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge_perception.api.errors import RequestError
from edge_perception.api.images import check_image
from edge_perception.api.pipeline import Pipeline
from edge_perception.api.prometheus import exposition
from edge_perception.api.schemas import (
    DetectResult,
    Health,
    Latency,
    Metrics,
    Problem,
    RequestCounts,
    Tracks,
)
from edge_perception.api.stream import MEDIA_TYPE, Broadcast
from edge_perception.api.uploads import read_upload

PAGE = Path(__file__).parent / 'page.html'
DOCS = Path(__file__).parent / 'docs.html'
PUBLIC_PATHS = frozenset({'/', '/docs', '/openapi.json'})
"""They hold nothing of the pipeline; the page asks for the token."""
LOOPBACK_NAMES = frozenset({'localhost', '127.0.0.1', '[::1]'})
RETRY_AFTER_S = 1
REFUSALS_PER_S = 100.0
FREE_REFUSALS = 100
LONGEST_REFUSAL_S = 0.5
LATENCIES_KEPT = 1000


@dataclass(frozen=True)
class Limits:
    """What a client may ask for.

    Attributes:
        max_body_bytes: of a request.
        max_pixels: of an image, decoded.
        max_requests: /detect requests at the same time; more are refused at once.
        request_timeout_s: for a request to arrive, and again for its answer.
        max_viewers: open video streams.
    """

    max_body_bytes: int = 16 * 2**20
    max_pixels: int = 40_000_000
    max_requests: int = 4
    request_timeout_s: float = 10.0
    max_viewers: int = 8


class Gateway:
    """The application and what it counts.

    Args:
        pipeline: what is behind it.
        limits: for clients.
        token: that clients must send as `Authorization: Bearer ...`; empty for none.
        hosts: names that clients may call this machine by, empty for any. For a gateway that
            only this machine reaches it keeps web pages from reaching it by DNS rebinding.
        on_error: called with an error that is a bug; the client gets one line.

    Attributes:
        app: the ASGI application.
        broadcast: takes the pictures of /stream.mjpg.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        limits: Limits,
        token: str = '',
        hosts: Collection[str] = LOOPBACK_NAMES,
        on_error: Callable[[Exception], None],
    ) -> None:
        self.limits = limits
        self.broadcast = Broadcast()
        self.responses: Counter[tuple[str, int]] = Counter()
        self._pipeline = pipeline
        self._running = 0
        self._refusal_s = 0.0
        self._detect_ms: list[float] = []
        self._threads = ThreadPoolExecutor(limits.max_requests, thread_name_prefix='request')
        api = self._make_api(bool(token))
        self._paths = frozenset(route.path for route in api.routes if hasattr(route, 'path'))
        self.app: ASGIApp = _Guard(
            api, token=token, hosts=hosts, count=self._count, on_error=on_error
        )

    def close(self) -> None:
        """End every stream; to be called on the event loop."""
        self.broadcast.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def viewers(self) -> int:
        """Open video streams."""
        return self.broadcast.viewers

    def request_counts(self) -> RequestCounts:
        """What clients asked for so far."""
        counts: Counter[str] = Counter()
        for (path, status), count in list(self.responses.items()):
            if path == '/detect' and status == 200:
                counts['detect'] += count
            elif status in (429, 503) and path != '/health':
                counts['refused'] += count
            elif status >= 400 and path != '/health':
                counts['failed'] += count
        return RequestCounts(
            detect=counts['detect'],
            refused=counts['refused'],
            failed=counts['failed'],
            viewers=self.viewers,
            detect_latency_ms=_latency(self._detect_ms),
        )

    def _count(self, path: str, status: int) -> None:
        # Only paths that exist: a scanner must not grow the table.
        self.responses[path if path in self._paths else 'other', status] += 1

    def _metrics(self) -> Metrics:
        metrics = self._pipeline.metrics()
        requests = self.request_counts()
        if not metrics.nodes:
            metrics = metrics.model_copy(update={'latency_ms': requests.detect_latency_ms})
        return metrics.model_copy(update={'requests': requests})

    def _make_api(self, needs_token: bool) -> FastAPI:
        api = FastAPI(docs_url=None, redoc_url=None, openapi_url='/openapi.json')
        api.openapi = lambda: _describe(api, needs_token)  # type: ignore[method-assign]
        for error in (RequestError, HTTPException, RequestValidationError):
            api.add_exception_handler(error, _answer_error)

        @api.get('/', include_in_schema=False)
        async def page() -> Response:
            return HTMLResponse(PAGE.read_bytes())

        @api.get('/docs', include_in_schema=False)
        async def docs() -> Response:
            return HTMLResponse(DOCS.read_bytes())

        @api.get('/health', responses={503: {'model': Health}})
        async def health(response: Response) -> Health:
            """State of the pipeline and of each node; 503 when it cannot do its work."""
            state = self._pipeline.health()
            response.status_code = 503 if state.status == 'error' else 200
            return state

        @api.get(
            '/metrics', responses={200: {'content': {'text/plain': {}}}}, response_model=Metrics
        )
        async def metrics(request: Request) -> Any:
            """Numbers as JSON, or as Prometheus text where the Accept header asks for it."""
            accept = request.headers.get('accept', '')
            if _wants_text(accept):
                return self._prometheus(accept)
            return self._metrics()

        @api.get(
            '/metrics/prometheus',
            response_class=Response,
            responses={200: {'content': {'text/plain': {'schema': {'type': 'string'}}}}},
        )
        async def prometheus(request: Request) -> Response:
            """Numbers and histograms for Prometheus."""
            return self._prometheus(request.headers.get('accept', ''))

        @api.get('/tracks')
        async def tracks() -> Tracks:
            """The tracks of the newest image."""
            return self._pipeline.tracks()

        @api.get(
            '/stream.mjpg',
            response_class=Response,
            responses={
                200: {'content': {'multipart/x-mixed-replace': {}}},
                503: {'model': Problem},
            },
        )
        async def stream() -> Response:
            """The annotated video (Motion JPEG)."""
            if self.viewers >= self.limits.max_viewers:
                raise RequestError(
                    503,
                    f'{self.limits.max_viewers} viewers are watching already',
                    retry_after_s=RETRY_AFTER_S,
                )
            return StreamingResponse(
                self.broadcast.view(),
                media_type=MEDIA_TYPE,
                headers={'Cache-Control': 'no-store'},
            )

        @api.post(
            '/detect',
            responses={
                status: {'model': Problem} for status in (400, 408, 413, 415, 422, 503, 504)
            },
            openapi_extra={'requestBody': DETECT_FORM},
        )
        async def detect(request: Request) -> DetectResult:
            """Objects on one image. The live images go first: 503 when they leave no time."""
            if self._running >= self.limits.max_requests:
                await self._slow_down()
                raise RequestError(
                    503,
                    f'{self.limits.max_requests} requests are in work already',
                    retry_after_s=RETRY_AFTER_S,
                )
            self._running += 1
            try:
                return await self._detect(request)
            finally:
                self._running -= 1

        return api

    async def _slow_down(self) -> None:
        """Refuse at once, but not thousands of times a second: that would cost the live images
        more than an answer does. A client that tries again at once waits for up to half a second.
        """
        now_s = time.monotonic()
        earliest_s = now_s - FREE_REFUSALS / REFUSALS_PER_S
        self._refusal_s = max(self._refusal_s, earliest_s) + 1 / REFUSALS_PER_S
        if self._refusal_s > now_s:
            await asyncio.sleep(min(self._refusal_s - now_s, LONGEST_REFUSAL_S))

    async def _detect(self, request: Request) -> DetectResult:
        limits = self.limits
        data, options = await read_upload(
            request, max_body_bytes=limits.max_body_bytes, timeout_s=limits.request_timeout_s
        )
        check_image(data, limits.max_pixels)
        started_s = time.monotonic()
        deadline_s = started_s + limits.request_timeout_s
        work = asyncio.get_running_loop().run_in_executor(
            self._threads, self._pipeline.detect, data, options, deadline_s
        )
        try:
            result = await asyncio.wait_for(work, limits.request_timeout_s + 1.0)
        except asyncio.TimeoutError:
            raise RequestError(
                504, f'there was no answer within {limits.request_timeout_s:g} s'
            ) from None
        total_ms = (time.monotonic() - started_s) * 1e3
        self._detect_ms.append(total_ms)
        del self._detect_ms[:-LATENCIES_KEPT]
        result.latency_ms['total'] = total_ms
        return result

    def _prometheus(self, accept: str) -> Response:
        text, content_type = exposition(
            self._pipeline, self._metrics(), dict(self.responses), accept
        )
        return Response(text, headers={'Content-Type': content_type})


DETECT_FORM = {
    'required': True,
    'content': {
        'multipart/form-data': {
            'schema': {
                'type': 'object',
                'required': ['file'],
                'properties': {
                    'file': {
                        'type': 'string',
                        'format': 'binary',
                        'description': 'a JPEG or PNG image',
                    },
                    'score_threshold': {
                        'type': 'number',
                        'minimum': 0,
                        'maximum': 1,
                        'description': 'leave out objects with a lower score',
                    },
                    'classes': {
                        'type': 'string',
                        'maxLength': 1024,
                        'description': 'class names to report, separated by commas; default all',
                    },
                    'backend': {
                        'type': 'string',
                        'maxLength': 1024,
                        'description': 'what shall run the model, such as onnx; default any',
                    },
                },
            }
        }
    },
}


class _Guard:
    """The outermost layer: who may ask, what is counted, and no traceback to the outside."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: str,
        hosts: Collection[str],
        count: Callable[[str, int], None],
        on_error: Callable[[Exception], None],
    ) -> None:
        self._app = app
        self._token = token
        self._hosts = hosts
        self._count = count
        self._on_error = on_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope['type'] != 'http':
            return
        status = 0

        async def counted_send(message: Message) -> None:
            nonlocal status
            if message['type'] == 'http.response.start':
                status = message['status']
                message['headers'] = [*message['headers'], *_SECURITY_HEADERS]
                self._count(scope['path'], status)
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, counted_send)
            return
        try:
            await self._app(scope, receive, counted_send)
        except Exception as error:  # a bug: the log says which, the client need not know
            self._on_error(error)
            if not status:
                await _problem(500, 'internal error; the log of the gateway says more')(
                    scope, receive, counted_send
                )

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = headers.get('host', '')
        if self._hosts and _host_name(host) not in self._hosts:
            return _problem(403, f'this gateway answers only as {", ".join(sorted(self._hosts))}')
        origin = headers.get('origin')
        if origin is not None and origin.partition('://')[2] != host:
            return _problem(403, 'requests from pages of other sites are refused')
        if self._token and scope['path'] not in PUBLIC_PATHS:
            scheme, _, token = headers.get('authorization', '').partition(' ')
            # Compared as bytes: compare_digest takes no text beyond ASCII.
            if scheme.lower() != 'bearer' or not hmac.compare_digest(
                token.strip().encode(), self._token.encode()
            ):
                return _problem(
                    401,
                    'send the token as Authorization: Bearer',
                    **{'WWW-Authenticate': 'Bearer'},
                )
        return None


_SECURITY_HEADERS = [
    (b'x-content-type-options', b'nosniff'),
    (b'referrer-policy', b'no-referrer'),
    (b'x-frame-options', b'DENY'),
    (
        b'content-security-policy',
        b"default-src 'self'; img-src 'self' blob: data:; style-src 'unsafe-inline'; "
        b"script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
]


def _host_name(host: str) -> str:
    return (host.partition(']')[0] + ']' if host.startswith('[') else host.split(':')[0]).lower()


def _problem(status: int, detail: str, **headers: str) -> JSONResponse:
    return JSONResponse({'detail': detail}, status, headers)


async def _answer_error(request: Request, error: Exception) -> Response:
    if isinstance(error, RequestError):
        headers = {} if error.retry_after_s is None else {'Retry-After': str(error.retry_after_s)}
        return _problem(error.status, error.detail, **headers)
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        place = '.'.join(str(part) for part in first['loc'][1:])
        return _problem(422, f'{place}: {first["msg"]}')
    assert isinstance(error, HTTPException)
    detail = ' '.join(str(error.detail).split())
    return _problem(error.status_code, detail, **(error.headers or {}))


def _wants_text(accept: str) -> bool:
    """Whether an Accept header prefers Prometheus' text over JSON (RFC 9110, 12.5.1)."""
    best_text = best_json = 0.0
    for item in accept.split(','):
        kind, *parameters = (part.strip().lower() for part in item.split(';'))
        quality = 1.0
        for parameter in parameters:
            name, _, value = parameter.partition('=')
            if name == 'q':
                try:
                    quality = float(value)
                except ValueError:
                    quality = 0.0
        if kind in ('text/plain', 'application/openmetrics-text'):
            best_text = max(best_text, quality)
        elif kind == 'application/json':
            best_json = max(best_json, quality)
    return best_text > best_json


def _latency(samples_ms: list[float]) -> Latency:
    ordered = sorted(samples_ms)
    if not ordered:
        return Latency(count=0, avg=None, p50=None, p90=None, p95=None, p99=None, max=None)

    def percentile(percent: int) -> float:
        return ordered[math.ceil(percent * len(ordered) / 100) - 1]

    return Latency(
        count=len(ordered),
        avg=sum(ordered) / len(ordered),
        p50=percentile(50),
        p90=percentile(90),
        p95=percentile(95),
        p99=percentile(99),
        max=ordered[-1],
    )


def _describe(api: FastAPI, needs_token: bool) -> dict[str, Any]:
    """The OpenAPI description, with the answers that every path may give."""
    if api.openapi_schema:
        return api.openapi_schema
    schema = get_openapi(
        title='Edge Perception gateway',
        version='1',
        description='Detection and tracking of a running pipeline: ask it, watch it, monitor it.',
        routes=api.routes,
    )
    components = schema.setdefault('components', {})
    problem = {'$ref': '#/components/schemas/Problem'}
    common = {403: 'Refused: the wrong host, or a page of another site'}
    if needs_token:
        common[401] = 'The token is missing or wrong'
        components['securitySchemes'] = {'token': {'type': 'http', 'scheme': 'bearer'}}
        schema['security'] = [{'token': []}]
    for path in schema['paths'].values():
        for operation in path.values():
            for status, text in common.items():
                operation['responses'][str(status)] = {
                    'description': text,
                    'content': {'application/json': {'schema': problem}},
                }
    api.openapi_schema = schema
    return schema
