"""What the gateway answers, field by field; the OpenAPI description is made of it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

Level = Literal['ok', 'warn', 'error', 'stale']


class Problem(BaseModel):
    """Why a request was not answered."""

    detail: str = Field(description='one line that says what is wrong and what to do')


class NodeHealth(BaseModel):
    """One node of the pipeline."""

    state: str = Field(description='lifecycle state; unknown until it is first heard')
    level: Level = Field(description='of its diagnostics; stale when it has fallen silent')
    message: str = Field(description='why it has this level')
    age_s: float | None = Field(description='seconds since it was last heard')


class Health(BaseModel):
    """State of the pipeline."""

    status: Literal['ok', 'warn', 'error'] = Field(description='error goes with HTTP status 503')
    message: str = Field(description='what is wrong, or OK')
    nodes: dict[str, NodeHealth]
    why_no_output: list[str] = Field(
        description='reasons why no tracks come out; empty while they do'
    )


class Latency(BaseModel):
    """Mean and percentiles of durations, in milliseconds."""

    count: int = Field(description='how many durations in the window')
    avg: float | None
    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None
    max: float | None


class ProcessLoad(BaseModel):
    """Load of one process."""

    cpu_percent: float = Field(description='of one core')
    rss_mib: float = Field(description='resident memory')
    threads: int


class GpuLoad(BaseModel):
    """Load of one GPU; null is what it does not tell."""

    name: str
    usage_percent: float | None = None
    memory_used_mib: float | None = None
    memory_total_mib: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None


class NodeCounts(BaseModel):
    """Images of one node since it was activated."""

    fps: float | None = None
    received: int | None = None
    dropped: int | None = None
    failed: int | None = None


class RequestCounts(BaseModel):
    """Requests to this gateway."""

    detect: int = Field(description='images that were answered')
    refused: int = Field(description='requests refused as too many (429, 503)')
    failed: int = Field(description='requests refused for another reason (other 4xx, 5xx)')
    viewers: int = Field(description='open video streams')
    detect_latency_ms: Latency = Field(description='request received to answer, of the window')


class Metrics(BaseModel):
    """Numbers of the pipeline. Null is what nobody has told yet."""

    inference_count: int = Field(description='runs of the detector since its start')
    latency_ms: Latency = Field(
        description='image stamp to published tracks, over the last `window_s` seconds; in a '
        'gateway without a pipeline the latency of /detect'
    )
    fps: float | None = Field(description='tracks messages a second')
    cpu_percent: float | None = Field(description='of all cores together')
    backend_usage: dict[str, int] = Field(description='runs of the detector by backend')
    window_s: float | None = Field(description='what percentiles cover')
    stages: dict[str, Latency] = Field(description='percentiles of each stage over the window')
    nodes: dict[str, NodeCounts]
    memory_percent: float | None
    temperature_c: float | None = Field(description='of the hottest sensor')
    processes: dict[str, ProcessLoad]
    gpus: list[GpuLoad]
    requests: RequestCounts


class Track(BaseModel):
    """One tracked object; the box is in pixels of the image."""

    id: int
    label: str
    confidence: float
    x1: float
    y1: float
    x2: float
    y2: float
    age_s: float | None = Field(description='since its first detection')
    time_since_detection_s: float | None
    source: Literal['detected', 'predicted'] | None


class Tracks(BaseModel):
    """The tracks of the newest image."""

    stamp_ns: int | None = Field(description='stamp of the image; null before the first one')
    age_s: float | None = Field(description='how old the image is')
    frame_id: str
    tracks: list[Track]


class DetectedObject(BaseModel):
    """One object; the box is in pixels of the image as it is shown."""

    x1: float
    y1: float
    x2: float
    y2: float
    class_id: int
    label: str
    confidence: float = Field(ge=0.0, le=1.0)


class DetectResult(BaseModel):
    """What was found on the image, best first."""

    detections: list[DetectedObject]
    width: int = Field(description='of the image, in pixels, with its EXIF orientation applied')
    height: int
    backend: str = Field(description='what ran the model')
    latency_ms: dict[str, float] = Field(
        description='preprocess, inference, postprocess, and total: from the whole request being '
        'there to the answer'
    )
