"""The detector: frames in, Detections out, on any backend."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np
from numpy.typing import NDArray

from edge_perception.detection.canvas import Canvas
from edge_perception.detection.decode import Layout, check_task, choose_layout, decode
from edge_perception.detection.errors import LabelsError, LayoutError, RangeError
from edge_perception.detection.labels import Labels, resolve_labels, wanted_class_ids
from edge_perception.detection.nms import non_maximum_suppression
from edge_perception.detection.preprocess import PAD_VALUE, LetterboxGeometry, Preprocessor
from edge_perception.detection.selection import activate_backend
from edge_perception.types import Detections, Frame

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from edge_perception.detection.backends import Backend

    Image = Frame | NDArray[np.uint8]

BATCH_TRIALS = 5
BATCH_PAYS = 0.9
"""A batch costs at most so much a frame of what a smaller one costs."""


class Detector:
    """A detector network with everything around it: letterbox, decode, NMS, class names.

    Loading runs the network once on a grey image: that tells the output's layout, and a model
    that cannot work is refused here and not on the first frame.

    Attributes:
        score_threshold: detections need this score; may be changed at any time.
        iou_threshold: overlap above which the better of two boxes of a class stays; likewise.
        max_detections: how many detections a frame has at most; likewise.
        classes: names of the classes to report, none for all; likewise.
        names: class names by class id.
        backend_name: the backend in use.
        device: `cpu` or `cuda:INDEX`.
        reason: one line that says why this backend was taken.
        layout: how the network's output is read.
        preprocess: turns frames into the network's input.
        timings: milliseconds of the last call in `preprocess`, `inference` and `postprocess`,
            for all its frames together.
    """

    def __init__(
        self,
        backend: str = 'auto',
        *,
        model_path: str | Path,
        score_threshold: float = 0.25,
        iou_threshold: float = 0.6,
        classes: Iterable[str] | None = None,
        max_detections: int = 300,
        image_size: int | tuple[int, int] | None = None,
        device: str = 'auto',
        layout: str = 'auto',
        labels: Labels | None = None,
        threads: int | None = None,
        spin: bool | None = None,
    ) -> None:
        """Load a model.

        Args:
            backend: `auto`, or the name of a backend.
            model_path: the model file; the bare name of official Ultralytics weights
                (`yolov8n.pt`) is downloaded where there is a network.
            score_threshold: in [0, 1].
            iou_threshold: in [0, 1].
            classes: names of the classes to report; None or nothing for all.
            max_detections: at least 1.
            image_size: long side, or (height, width), in pixels that frames are fitted into; a
                multiple of the model's stride. None: what the model was trained or exported for.
            device: `auto`, `cpu`, `cuda` or `cuda:INDEX`.
            layout: `auto`, or how the output is read (see decode).
            labels: class names instead of the model's: a file with one a line, or a list.
            threads: CPU threads of the engine; None leaves it to the engine.
            spin: see Backend: False leaves the CPU to other work between inferences.

        Raises:
            DetectionError: a subclass of it for each cause, with one line that says what to do.
        """
        for name, value in (('score', score_threshold), ('iou', iou_threshold)):
            if not 0 <= value <= 1:
                raise RangeError(f'{name}_threshold must be in [0, 1], not {value}')
        if max_detections < 1:
            raise RangeError(f'max_detections must be at least 1, not {max_detections}')
        self.score_threshold = score_threshold
        self.iou_threshold = iou_threshold
        self.max_detections = max_detections
        self.timings: dict[str, float] = {}
        self._backend, self.reason = activate_backend(
            backend,
            model_path,
            image_size=image_size,
            device=device,
            threads=threads,
            spin=spin,
        )
        try:
            metadata = self._backend.metadata
            check_task(metadata)
            self.names = resolve_labels(metadata, labels)
            self.classes = tuple(classes or ())
            spec = self._backend.input_spec
            canvas = Canvas.of(spec, metadata, image_size)
            self._image_hw = canvas.image_hw
            self._fixed_batch = spec.shape[0]
            self._largest_batch = spec.largest[0] if spec.largest else None
            self.layout = self._probe_layout(layout, metadata)
            if not self.layout.needs_nms and "'nms': True" in metadata.get('args', ''):
                # NMS inside the graph is unrolled for so many images; others would have no boxes.
                self._largest_batch = int(metadata.get('batch', 1))
            takes_raw_values = self.layout.takes_bgr_255 or spec.dtype == np.uint8
            self.preprocess = Preprocessor(
                self._image_hw,
                stride=canvas.stride,
                rectangular=canvas.rectangular,
                smallest_hw=canvas.smallest_hw,
                scale=1.0 if takes_raw_values else 1 / 255,
                rgb=not self.layout.takes_bgr_255,
                dtype=spec.dtype,
                channels_last=spec.channels_last,
            )
        except BaseException:
            self._backend.close()
            raise

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that are reported; none means all."""
        return self._classes

    @classes.setter
    def classes(self, classes: Iterable[str]) -> None:
        """Choose the classes to report.

        Raises:
            LabelsError: the model has no class of that name.
        """
        wanted = tuple(classes)
        self._class_ids = wanted_class_ids(self.names, wanted)
        self._classes = wanted

    @property
    def backend_name(self) -> str:
        """Name of the backend in use."""
        return self._backend.name

    @property
    def device(self) -> str:
        """The device in use."""
        return self._backend.device

    @property
    def backend(self) -> Backend:
        """The backend itself, for measurements."""
        return self._backend

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width in pixels that frames are fitted into."""
        return self._image_hw

    @overload
    def __call__(self, frames: Image) -> Detections: ...

    @overload
    def __call__(self, frames: Sequence[Image]) -> list[Detections]: ...

    def __call__(self, frames: Image | Sequence[Image]) -> Detections | list[Detections]:
        """Detect objects.

        Args:
            frames: a Frame or a (h, w, 3) uint8 BGR array, or a sequence of them: of any sizes,
                inferred together as far as the model takes batches.

        Returns:
            Detections in pixels of the frame, best score first; a list of them for a sequence.

        Raises:
            ShapeError: an image has another shape or dtype.
            OutputValueError: the network put out NaN or infinite values.
            BackendError: the engine failed.
        """
        if isinstance(frames, Frame) or (isinstance(frames, np.ndarray) and frames.ndim == 3):
            return self._detect([_image_of(frames)])[0]
        return self._detect([_image_of(frame) for frame in frames])

    def warm_up(self, frame_hw: tuple[int, int] = (720, 1280), *, runs: int = 2) -> None:
        """Run on grey frames of the size to come, so that the first real one is not slow."""
        frame = np.full((*frame_hw, 3), PAD_VALUE, np.uint8)
        for _ in range(runs):
            self._detect([frame])

    def best_batch(self, most: int, frame_hw: tuple[int, int] = (480, 640)) -> int:
        """How many frames of one size to infer together: measured on grey ones, in a second or so.

        All frames of a batch wait for its end, so one that saves less than a tenth of the time
        does not pay.

        Args:
            most: try no more; the model's own limit counts too.
            frame_hw: height and width of the frames to come.
        """
        most = min(most, self._fixed_batch or self._largest_batch or most)
        frame = np.full((*frame_hw, 3), PAD_VALUE, np.uint8)
        best, size = 1, 2
        while size <= most:
            durations_s: dict[int, list[float]] = {best: [], size: []}
            # By turns, so that what else the machine does at the time harms both alike.
            for _ in range(BATCH_TRIALS + 1):
                for frames, durations in durations_s.items():
                    start = time.perf_counter()
                    self._detect([frame] * frames)
                    durations.append((time.perf_counter() - start) / frames)
            # The first call of a size prepares the engine for it.
            if min(durations_s[size][1:]) > BATCH_PAYS * min(durations_s[best][1:]):
                break
            best, size = size, 2 * size
        return best

    def close(self) -> None:
        """Free the model; the detector cannot be called after it."""
        self._backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _detect(self, images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
        self.timings = {'preprocess': 0.0, 'inference': 0.0, 'postprocess': 0.0}
        size = self._fixed_batch or min(len(images), self._largest_batch or len(images))
        found: list[Detections] = []
        for first in range(0, len(images), max(size, 1)):
            found += self._detect_batch(images[first : first + size])
        return found

    def _detect_batch(self, images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
        """Detect on as many frames as go through the network at once."""
        start = time.perf_counter()
        blob, geometries = self.preprocess(images, batch=self._fixed_batch)
        preprocessed = time.perf_counter()
        output = self._backend.infer(blob)[0]
        inferred = time.perf_counter()
        canvas_hw = self.preprocess.last_canvas_hw
        found = [
            self._postprocess(image_output, geometry, canvas_hw)
            for image_output, geometry in zip(output, geometries, strict=False)
        ]
        self.timings['preprocess'] += (preprocessed - start) * 1e3
        self.timings['inference'] += (inferred - preprocessed) * 1e3
        self.timings['postprocess'] += (time.perf_counter() - inferred) * 1e3
        return found

    def _postprocess(
        self, output: NDArray[np.float32], geometry: LetterboxGeometry, canvas_hw: tuple[int, int]
    ) -> Detections:
        """Network output of one frame to its Detections."""
        found = decode(
            output,
            self.layout,
            canvas_hw=canvas_hw,
            score_threshold=self.score_threshold,
            class_ids=self._class_ids,
        )
        if self.layout.needs_nms:
            order = non_maximum_suppression(
                found.boxes_xyxy,
                found.scores,
                found.class_ids,
                iou_threshold=self.iou_threshold,
                max_detections=self.max_detections,
            )
        else:
            order = np.argsort(-found.scores, kind='stable')[: self.max_detections]
        class_id = found.class_ids[order]
        if len(class_id) and not 0 <= class_id.min() <= class_id.max() < len(self.names):
            raise LabelsError(
                f'the model reports class {class_id.max()}, but there are only '
                f'{len(self.names)} class names: the labels are those of another model'
            )
        boxes = geometry.boxes_to_frame(found.boxes_xyxy[order])
        detections = Detections(xyxy=boxes, score=found.scores[order], class_id=class_id)
        # A box that lay in the border has no area left on the image.
        on_image = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        return detections if on_image.all() else detections[on_image]

    def _probe_layout(self, layout: str, metadata: dict[str, str]) -> Layout:
        """Infer a grey image and tell the layout from what comes out."""
        spec = self._backend.input_spec
        grey = PAD_VALUE if spec.dtype == np.uint8 else PAD_VALUE / 255
        blob = np.full(spec.blob_shape(self._fixed_batch or 1, self._image_hw), grey, spec.dtype)
        outputs = self._backend.infer(blob)
        if not outputs:
            raise LayoutError('the model has no output')
        return choose_layout(
            outputs,
            class_count=len(self.names),
            canvas_hw=self._image_hw,
            metadata=metadata,
            override=layout,
        )


def _image_of(frame: Image) -> NDArray[np.uint8]:
    """The checked (h, w, 3) uint8 BGR array of a frame."""
    return frame.image if isinstance(frame, Frame) else Frame(frame).image
