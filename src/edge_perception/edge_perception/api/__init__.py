"""The HTTP interface of the pipeline. Knows nothing of ROS."""

from edge_perception.api.app import Gateway, Limits
from edge_perception.api.errors import GatewayError, RequestError
from edge_perception.api.pipeline import DetectOptions, Histogram, Pipeline
from edge_perception.api.server import Server, is_loopback, listen

__all__ = [
    'DetectOptions',
    'Gateway',
    'GatewayError',
    'Histogram',
    'Limits',
    'Pipeline',
    'RequestError',
    'Server',
    'is_loopback',
    'listen',
]
