"""TensorRT engines as files: the plan behind a header, and a sidecar that says where it fits.

The header is Ultralytics' own: four bytes, little-endian, with the length of a JSON text, the text
(names, stride, imgsz, task ...), then the plan. The sidecar lies beside it as NAME.engine.json and
says with which TensorRT, for which GPU and from which ONNX file the plan was built, so that a
misfit is told before TensorRT fails on it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from edge_perception.detection.errors import ModelFileError, first_line

_LONGEST_HEADER = 1 << 20


@dataclass(frozen=True)
class Sidecar:
    """Where an engine fits and what it was built from.

    Attributes:
        tensorrt: `tensorrt` or `tensorrt_rtx`, and its version, such as `tensorrt 10.3.0`.
        gpu: name of the GPU that it was built on; empty when it was built without one.
        compute_capability: of that GPU, such as `8.7`; likewise.
        onnx_name: file name of the model it was built from.
        onnx_sha256: of that file.
        engine_sha256: of the engine file.
        precision: `fp32`, `fp16` or `int8`.
        int8_method: how INT8 ranges were found; empty for other precisions.
        profile: least, usual and greatest input shape.
        labels: class names by class id.
        command: what builds it again.
    """

    tensorrt: str
    gpu: str
    compute_capability: str
    onnx_name: str
    onnx_sha256: str
    engine_sha256: str
    precision: str
    int8_method: str
    profile: dict[str, list[int]]
    labels: dict[str, str]
    command: str


def sidecar_path(engine: Path) -> Path:
    """The sidecar's name."""
    return engine.with_name(f'{engine.name}.json')


def sha256_of(path: Path) -> str:
    """Hash of a file's content, in hexadecimal."""
    with path.open('rb') as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_engine(path: Path, plan: bytes | memoryview, metadata: Mapping[str, str]) -> None:
    """Write header and plan into a file of any name.

    Raises:
        OSError: it cannot be written; the caller removes what was.
    """
    header = json.dumps(dict(metadata)).encode()
    with path.open('wb') as file:
        file.write(len(header).to_bytes(4, 'little'))
        file.write(header)
        file.write(plan)
        file.flush()
        os.fsync(file.fileno())


def read_engine(path: Path) -> tuple[dict[str, str], bytes]:
    """Metadata and plan of an engine file; a plan without a header has none.

    Raises:
        ModelFileError: it cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelFileError(f'cannot read {path}: {first_line(error)}') from error
    length = int.from_bytes(content[:4], 'little')
    if 0 < length <= min(_LONGEST_HEADER, len(content) - 4) and content[4:5] == b'{':
        try:
            header = json.loads(content[4 : 4 + length])
        except (ValueError, RecursionError) as error:
            raise ModelFileError(f'{path} has a damaged header: build it again') from error
        return {key: str(value) for key, value in header.items()}, content[4 + length :]
    return {}, content


def read_sidecar(engine: Path) -> Sidecar | None:
    """The sidecar of an engine; None when it has none.

    Raises:
        ModelFileError: there is one, and it is damaged.
    """
    path = sidecar_path(engine)
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
        return _checked(Sidecar(**{item.name: content[item.name] for item in fields(Sidecar)}))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelFileError(f'{path} is damaged: build {engine.name} again') from error


def _checked(sidecar: Sidecar) -> Sidecar:
    """The sidecar, if its values are of the types that it declares.

    Raises:
        ValueError: they are not, or the name of the model is no plain file name.
    """
    texts = [value for value in asdict(sidecar).values() if not isinstance(value, dict)]
    sizes = [size for shape in sidecar.profile.values() for size in shape]
    if not (
        all(isinstance(value, str) for value in (*texts, *sidecar.labels.values()))
        and all(isinstance(size, int) for size in sizes)
        and sidecar.onnx_name == Path(sidecar.onnx_name).name != ''
        and '\0' not in sidecar.onnx_name
    ):
        raise ValueError('a value of another type')
    return sidecar


def sidecar_text(sidecar: Sidecar) -> str:
    """What is written into the sidecar's file."""
    return json.dumps(asdict(sidecar), indent=2) + '\n'
