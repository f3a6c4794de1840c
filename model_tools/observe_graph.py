"""Prints what it hears, a JSON object a line, until it is ended: it runs where the test cannot.

    python model_tools/observe_graph.py

Lines: {"tracks": stamp_ns, "received_ns": ..., "ids": [...]} for each message on `tracks`, and
{"node": name, "values": {...}} for each status on /diagnostics. Both clocks are this machine's.
"""

from __future__ import annotations

import json
import signal
import sys
import time

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.signals import SignalHandlerOptions
from vision_msgs.msg import Detection2DArray

from edge_perception.ros.messages import stamp_ns
from edge_perception.ros.qos import RESULTS_QOS
from edge_perception.ros.statuses import values_by_node
from edge_perception.ros.transport import apply_transport_defaults


def say(**values: object) -> None:
    """One line, at once."""
    print(json.dumps(values), flush=True)


def on_tracks(message: Detection2DArray) -> None:
    """Stamp of the image, arrival of its tracks, ids."""
    say(
        tracks=stamp_ns(message.header),
        received_ns=time.time_ns(),
        ids=[detection.id for detection in message.detections],
    )


def on_diagnostics(message: DiagnosticArray) -> None:
    """What each node says of itself."""
    for node, values in values_by_node(message).items():
        say(node=node, values=values)


def main() -> None:
    """Listen until SIGINT or SIGTERM."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: sys.exit(0))
    apply_transport_defaults()
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node('observer')
    node.create_subscription(Detection2DArray, 'tracks', on_tracks, RESULTS_QOS)
    node.create_subscription(DiagnosticArray, '/diagnostics', on_diagnostics, 50)
    say(ready=True)
    while True:
        rclpy.spin_once(node, timeout_sec=0.2)


if __name__ == '__main__':
    main()
