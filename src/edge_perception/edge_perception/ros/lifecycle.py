"""The life of every node of this package: lifecycle, parameters, counts, diagnostics."""

from __future__ import annotations

import os
import socket
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from lifecycle_msgs.msg import State
from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile
from std_msgs.msg import Header

from edge_perception.metrics.fps import FPSMeter
from edge_perception.metrics.latency import StageLatencies
from edge_perception.ros.links import Links
from edge_perception.ros.log import EventLogger
from edge_perception.ros.parameters import LiveParameters, declare, parameter
from edge_perception.ros.qos import RESULTS_QOS
from edge_perception.types import EdgePerceptionError

DIAGNOSTICS_PERIOD_S = 1.0  # as REP-107 asks
REPORT_LOADING_S = 0.5
LAST_WORDS_S = 1.0
RECENT_S = 10.0
"""How long diagnostics speak of a problem after it was last seen."""


@dataclass(frozen=True)
class NodeParameters:
    """What every node has."""

    autostart: bool = parameter(
        True, 'configure and activate at start, without a lifecycle manager'
    )
    log_format: str = parameter(
        'text',
        'log lines for people, or JSON lines with stamp, node, event and fields',
        choices=('text', 'json'),
    )


class StartError(EdgePerceptionError):
    """A node could not be configured or activated."""


class ManagedNode(LifecycleNode):
    """A lifecycle node whose subclasses implement `configure`, `activate`, `parameters_changed`
    and `diagnose`.

    `configure` and `activate` may raise EdgePerceptionError: the text is logged in one line and
    the transition fails. What they open, they register at once with `until_cleanup` or
    `until_deactivate`, threads before they start: it is closed in reverse order at that
    transition, after a failure or a signal half-way, and on shutdown from any state.

    Args:
        name: default node name.
        parameters_type: the dataclass of the node's parameters, a NodeParameters.
        links: the other nodes of this process, None when they are elsewhere.
        kwargs: for rclpy's node: namespace, parameter_overrides, context, cli_args.
    """

    def __init__(
        self, name: str, parameters_type: type, *, links: Links | None = None, **kwargs: Any
    ) -> None:
        # Before rclpy's own: it may destroy a node that could not be made (see release.py).
        self._configured: list[Callable[[], object]] = []
        self._activated: list[Callable[[], object]] = []
        super().__init__(name, **kwargs)
        self.links = links
        self._failure = ''
        self._errors = _LastError()
        self.cameras: tuple[Camera, ...] = ()
        self.latencies = StageLatencies()
        self.fps = FPSMeter()
        self._live = LiveParameters(
            self,
            declare(self, parameters_type),
            changed=self.parameters_changed,
            may_configure=lambda: self.state_id == State.PRIMARY_STATE_UNCONFIGURED,
        )
        self._event_logger: EventLogger | None = EventLogger(
            super().get_logger().name,
            self.get_fully_qualified_name(),
            as_json=self.parameters.log_format == 'json',
        )
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        # What the window of the diagnostics is computed from. Apart from them, since nobody
        # wants to read it, and sent only to who asks for it.
        self._histograms = self.create_publisher(
            DiagnosticArray, 'latency_histograms', RESULTS_QOS
        )
        # Steady time: a simulated clock that stands still must not silence the diagnostics.
        self.create_timer(
            DIAGNOSTICS_PERIOD_S,
            self._publish_diagnostics,
            clock=Clock(clock_type=ClockType.STEADY_TIME),
        )

    # What subclasses implement.

    def configure(self) -> None:
        """Load what is needed and create publishers."""

    def activate(self) -> None:
        """Start: subscribe, start threads."""

    def parameters_changed(self, updated: Any) -> None:
        """Take over live parameters; raise EdgePerceptionError to refuse the change."""

    def diagnose(self, report: Report) -> None:
        """Add this node's values to `report`."""

    # What subclasses use.

    @property
    def parameters(self) -> Any:
        """The values in force, as the frozen dataclass given at construction."""
        return self._live.current

    @property
    def state_id(self) -> int:
        """One of lifecycle_msgs/State's primary or transition states."""
        return int(self._state_machine.current_state[0])

    @property
    def state_label(self) -> str:
        """The name of the state: unconfigured, inactive, active, finalized."""
        return str(self._state_machine.current_state[1])

    @property
    def process_text(self) -> str:
        """Host and process id, as the diagnostics say them."""
        return f'{socket.gethostname()}:{os.getpid()}'

    def until_cleanup(self, undo: Callable[[], object]) -> None:
        """Call `undo` at cleanup, last registered first."""
        self._configured.append(undo)

    def until_deactivate(self, undo: Callable[[], object]) -> None:
        """Call `undo` at deactivation, last registered first."""
        self._activated.append(undo)

    def advertise(self, kind: type, topic: str, qos: QoSProfile) -> Publisher:
        """A publisher that lasts until cleanup."""
        publisher = self.create_publisher(kind, topic, qos)
        self.until_cleanup(lambda: self.destroy_publisher(publisher))
        return publisher

    def subscribe(
        self,
        kind: type,
        topic: str,
        handle: Callable[[Any], object],
        qos: QoSProfile,
        *,
        raw: bool = False,
    ) -> None:
        """Call `handle` with each message, with its bytes when `raw`, until deactivation."""
        subscription = self.create_subscription(kind, topic, handle, qos, raw=raw)
        self.until_deactivate(lambda: self.destroy_subscription(subscription))

    def log_error_once_a_second(self, error: Exception) -> None:
        """Log an error of one frame, more within the second not; diagnostics speak of it."""
        text = self._errors.remember(error)
        self.get_logger().error(text, event=type(error).__name__, throttle_duration_sec=1.0)

    def get_logger(self) -> Any:
        """The node's logger; its messages take `event` and `fields` too (see EventLogger)."""
        # rclpy asks while this object is still in the making.
        return getattr(self, '_event_logger', None) or super().get_logger()

    def now_ns(self) -> int:
        """The node's clock (simulated where use_sim_time is set), in nanoseconds."""
        return int(self.get_clock().now().nanoseconds)

    def start(self) -> None:
        """Go from unconfigured to active.

        Raises:
            StartError: a transition failed; its reason is in the log.
        """
        if self.trigger_configure() != TransitionCallbackReturn.SUCCESS:
            raise StartError(f'{self.get_name()} could not be configured')
        if self.trigger_activate() != TransitionCallbackReturn.SUCCESS:
            raise StartError(f'{self.get_name()} could not be activated')

    # rclpy's side.

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Called by rclpy."""
        self._failure = ''
        loaded = threading.Event()
        reporter = threading.Thread(target=self._report_loading, args=(loaded,), daemon=True)
        reporter.start()
        try:
            self.configure()
        except Exception as error:  # rclpy would swallow it without a word
            self._fail(error)
            _undo_all(self._configured)
            return TransitionCallbackReturn.FAILURE
        finally:
            loaded.set()
            reporter.join()
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Called by rclpy."""
        result = super().on_activate(state)  # publishers first: work may come at once
        try:
            self.latencies.reset()
            self.fps.reset()
            for camera in self.cameras:
                camera.latencies.reset()
                camera.fps.reset()
            self.activate()
        except Exception as error:
            self._fail(error)
            _undo_all(self._activated)
            super().on_deactivate(state)
            return TransitionCallbackReturn.FAILURE
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Called by rclpy."""
        _undo_all(self._activated)
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Called by rclpy."""
        _undo_all(self._configured)
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Called by rclpy, from any state."""
        _undo_all(self._activated)
        _undo_all(self._configured)
        return super().on_shutdown(state)

    def destroy_node(self) -> None:
        """Stop whatever runs, free everything, leave the graph. May be called in any state."""
        _undo_all(self._activated)
        _undo_all(self._configured)
        super().destroy_node()

    def _report_loading(self, loaded: threading.Event) -> None:
        """Loading a model takes its time, in which the executor, and so the timer, waits."""
        while not loaded.wait(REPORT_LOADING_S):
            self._publish_diagnostics()

    def _fail(self, error: Exception) -> None:
        """Log why a transition failed, and tell who listens: the process may end now."""
        self._failure = str(error) or repr(error)
        self._log_failure(error)
        # A process that has just begun is not known to others yet.
        end_s = time.monotonic() + LAST_WORDS_S
        while not self._diagnostics.get_subscription_count() and time.monotonic() < end_s:
            time.sleep(0.02)
        self._publish_diagnostics()
        self._diagnostics.wait_for_all_acked(Duration(seconds=LAST_WORDS_S))

    def _log_failure(self, error: Exception) -> None:
        if isinstance(error, EdgePerceptionError):
            text = str(error)
        else:  # a bug: the place matters
            text = ''.join(traceback.format_exception(error))
        self.get_logger().error(text, event=type(error).__name__)

    def _publish_diagnostics(self) -> None:
        name = self.get_fully_qualified_name().lstrip('/')
        report = self._report(self)
        report.values['process'] = self.process_text
        message = DiagnosticArray()
        message.header.stamp = self.get_clock().now().to_msg()
        message.status = [report.status(name)]
        for camera in self.cameras:
            if camera.name:
                message.status.append(self._report(camera).status(camera.status_name))
        self._diagnostics.publish(message)
        if self._histograms.get_subscription_count():
            self._histograms.publish(self._histogram_message(message.header))

    def _report(self, speaker: ManagedNode | Camera) -> Report:
        """What the node says of itself, or of one of its cameras."""
        report = Report()
        report.values['state'] = self.state_label
        if self._failure:
            report.error(self._failure)
        speaker._errors.diagnose(report)
        if self.state_id == State.PRIMARY_STATE_ACTIVE:
            report.values['fps'] = f'{speaker.fps.fps:.2f}'
            for stage, summary in speaker.latencies.summaries().items():
                if summary.count:
                    for key in ('avg', 'p50', 'p90', 'p95', 'p99'):
                        value = getattr(summary, f'{key}_ms')
                        report.values[f'{stage}_ms.{key}'] = f'{value:.3f}'
        elif self.state_id == State.TRANSITION_STATE_CONFIGURING and not self._failure:
            report.warn('node is loading what it needs')
        elif self.state_id not in (
            State.PRIMARY_STATE_FINALIZED,
            State.TRANSITION_STATE_SHUTTINGDOWN,
        ):
            report.warn(f'node is {self.state_label}')
        try:
            speaker.diagnose(report)
        except Exception as error:  # what a node says of itself must not end it
            report.error(f'its diagnostics failed: {error!r}')
            self._log_failure(error)
        return report

    def _histogram_message(self, header: Header) -> DiagnosticArray:
        name = self.get_fully_qualified_name().lstrip('/')
        cameras = [
            _histogram_status(camera.status_name, camera.latencies)
            for camera in self.cameras
            if camera.name
        ]
        # Those of the node are the sum of its cameras'.
        return DiagnosticArray(
            header=header, status=cameras or [_histogram_status(name, self.latencies)]
        )


def _histogram_status(name: str, latencies: StageLatencies) -> DiagnosticStatus:
    values = [KeyValue(key='age_s', value=f'{latencies.age_s:.3f}')]
    for stage, histogram in latencies.totals().items():
        values.append(KeyValue(key=stage, value=histogram.to_text()))
    return DiagnosticStatus(name=name, values=values)


def _undo_all(steps: list[Callable[[], object]]) -> None:
    while steps:
        steps.pop()()


class _LastError:
    """The newest error of one frame, for as long as diagnostics speak of it."""

    def __init__(self) -> None:
        self._text = ''
        self._seen_s = 0.0

    def remember(self, error: Exception) -> str:
        """Keep an error; returns its text."""
        self._text = str(error) if isinstance(error, EdgePerceptionError) else repr(error)
        self._seen_s = time.monotonic()
        return self._text

    def diagnose(self, report: Report) -> None:
        """Say it, while it is recent."""
        if self._text and time.monotonic() - self._seen_s < RECENT_S:
            report.warn(self._text)


class Camera:
    """One of the cameras that a node serves: with numbers, errors and a status of its own.

    The status has the name that the node would have in the namespace of the camera, so that who
    looks at one camera sees a node of its own. The only camera of a node has no name, and its
    numbers and errors are those of the node.

    Args:
        node: the node; its numbers hold those of all its cameras.
        name: namespace of the camera, relative to the node's; empty for the only one.
    """

    def __init__(self, node: ManagedNode, name: str) -> None:
        self.name = name
        self.node = node
        self.latencies = StageLatencies() if name else node.latencies
        self.fps = FPSMeter() if name else node.fps
        self._errors = _LastError()

    @property
    def status_name(self) -> str:
        """The name of its status."""
        parts = (self.node.get_namespace().strip('/'), self.name, self.node.get_name())
        return '/'.join(part for part in parts if part)

    def add_latency(self, stage: str, latency_ms: float) -> None:
        """Count one duration of `stage`, for the camera and for the node."""
        self.latencies.add(stage, latency_ms)
        if self.name:
            self.node.latencies.add(stage, latency_ms)

    def tick(self) -> None:
        """Count one result, for the camera and for the node."""
        self.fps.tick()
        if self.name:
            self.node.fps.tick()

    def log_error_once_a_second(self, error: Exception) -> None:
        """As that of the node; the camera's status speaks of it."""
        if not self.name:
            self.node.log_error_once_a_second(error)
            return
        text = f'{self.name}: {self._errors.remember(error)}'
        self.node.get_logger().error(text, event=type(error).__name__, throttle_duration_sec=1.0)

    def diagnose(self, report: Report) -> None:
        """Add what is to be said of this camera."""


class Report:
    """One DiagnosticStatus in the making (REP-107). The worst level and its texts win."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.hardware_id = ''
        self._level = DiagnosticStatus.OK
        self._texts: list[str] = []

    def note(self, text: str) -> None:
        """Something worth to know when somebody wonders; all is well."""
        self._raise_to(DiagnosticStatus.OK, text)

    def warn(self, text: str) -> None:
        """Something is not as it should be, and the node works."""
        self._raise_to(DiagnosticStatus.WARN, text)

    def error(self, text: str) -> None:
        """The node cannot do its work."""
        self._raise_to(DiagnosticStatus.ERROR, text)

    def _raise_to(self, level: bytes, text: str) -> None:
        if level > self._level:
            self._level, self._texts = level, []
        if level == self._level:
            # `; ` separates texts, also for who takes the message apart again.
            self._texts.append(text.replace('; ', ', '))

    def status(self, node_name: str) -> DiagnosticStatus:
        """The message; its name is that of the node, as REP-107 asks."""
        return DiagnosticStatus(
            level=self._level,
            name=f'{node_name}: {node_name.rsplit("/", 1)[-1]}',
            message='; '.join(self._texts) or 'OK',
            hardware_id=self.hardware_id,
            values=[KeyValue(key=key, value=value) for key, value in self.values.items()],
        )
