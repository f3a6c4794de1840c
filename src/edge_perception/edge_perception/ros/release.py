"""What differs between the releases of ROS 2, Humble to Lyrical: nothing else here depends on it.

| | Humble | Jazzy | Kilted, Lyrical |
|---|---|---|---|
| rclpy's EventsExecutor | no | yes | yes |
| Fast DDS | 2 | 2 | 3: another variable for the profile, other names inside it |

Since Kilted a context destroys the nodes that are left when it shuts down, half-made ones too:
what `destroy_node` needs must exist before rclpy's constructor runs. The message definitions, the
QoS, lifecycle and launch calls that this package uses are the same in Jazzy and Kilted, which were
tried, and by their documentation in Humble; Lyrical is taken to be like Kilted.
"""

from __future__ import annotations

from pathlib import Path

from ament_index_python import get_search_paths
from rclpy.context import Context
from rclpy.executors import Executor, SingleThreadedExecutor


def make_executor(context: Context | None = None) -> Executor:
    """The executor with the least cost an event that this release has.

    rclpy's classic executors rebuild their wait set from all entities on every event.
    """
    try:
        from rclpy.experimental import EventsExecutor
    except ImportError:  # before Jazzy
        return SingleThreadedExecutor(context=context)
    return EventsExecutor(context=context)


def has_fast_dds_3() -> bool:
    """Whether the Fast DDS that is installed is 3, whose package has another name than before."""
    return any(Path(prefix, 'share', 'fastdds').is_dir() for prefix in get_search_paths())
