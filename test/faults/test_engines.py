"""Inference engines and model files that fail, real ones and one that fails on request."""

import shutil
import signal

import numpy as np
import onnx
import psutil
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import State
from onnx import TensorProto, helper
from vision_msgs.msg import Detection2DArray

from edge_perception.nodes.detector import DetectorNode
from edge_perception.ros.lifecycle import StartError
from edge_perception.ros.messages import stamp_ns

RAISES, SLOW, GREY, HANGS = 0, 50, 114, 255


def level(value):
    """An image of one brightness."""
    return np.full((64, 64, 3), value, np.uint8)


def make_nan_model(path, threshold):
    """One box; NaN for images that are brighter than `threshold`, of 1, in the mean."""
    box = np.zeros((1, 5, 84), np.float32)
    box[0, :, 0] = 32, 32, 10, 20, 0.9
    constants = {
        'box': box,
        'threshold': np.array(threshold, np.float32),
        'zero': np.array(0.0, np.float32),
    }
    nodes = [
        helper.make_node('ReduceMean', ['images'], ['mean'], keepdims=0),
        helper.make_node('Sub', ['threshold', 'mean'], ['room']),
        helper.make_node('Sqrt', ['room'], ['root']),  # of a negative number it is NaN
        helper.make_node('Mul', ['root', 'zero'], ['nothing']),
        helper.make_node('Add', ['box', 'nothing'], ['output0']),
    ]
    graph = helper.make_graph(
        nodes,
        'nan',
        [helper.make_tensor_value_info('images', TensorProto.FLOAT, [1, 3, 64, 64])],
        [helper.make_tensor_value_info('output0', TensorProto.FLOAT, [1, 5, 84])],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 13)], ir_version=8)
    for key, value in {'names': "{0: 'person'}", 'task': 'detect'}.items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, path)
    return path


def detector_says(graph, text, at_level=None):
    """Wait until the detector's diagnostics say `text`."""

    def says():
        found_level, message = graph.levels.get('detector', (b'', ''))
        return text in message and at_level in (None, found_level)

    graph.until(says, f'diagnostics: {text}')


def is_answered(messages, stamp):
    return any(stamp_ns(message.header) == stamp for message in messages)


def reach(graph, images, messages):
    """Send until something comes back: a connection is known to its two sides at two times."""
    images.wait_for_subscribers()
    graph.until(lambda: messages or images.send(image=level(GREY)) is None, 'first detections')
    graph.until(lambda: is_answered(messages, images.stamps_ns[-1]), 'detections')


def test_network_that_puts_out_nan_costs_that_image_and_is_said(graph, images, tmp_path):
    model = make_nan_model(tmp_path / 'nan.onnx', threshold=0.9)
    graph.add(DetectorNode, model_path=str(model), backend='onnx', detect_every_n=1)
    messages = graph.collect(Detection2DArray, 'detections')
    images.wait_for_subscribers()
    for brightness in (GREY, 255, GREY):
        stamp = images.send(image=level(brightness))
        if brightness == 255:
            detector_says(graph, 'NaN', DiagnosticStatus.WARN)
            assert not is_answered(messages, stamp)
        else:
            graph.until(lambda stamp=stamp: is_answered(messages, stamp), 'detections')
    assert graph.diagnostics['detector']['failed'] == '1'
    assert [len(message.detections) for message in messages] == [1, 1]


def test_network_that_puts_out_nan_at_once_is_refused(graph, tmp_path):
    model = make_nan_model(tmp_path / 'nan.onnx', threshold=0.1)
    node = graph.add(DetectorNode, start=False, model_path=str(model), backend='onnx')
    with pytest.raises(StartError):
        node.start()
    detector_says(graph, 'NaN', DiagnosticStatus.ERROR)
    assert node.state_id == State.PRIMARY_STATE_UNCONFIGURED


def test_model_file_that_is_replaced_or_gone(graph, images, tmp_path, default_model):
    """What runs goes on; what is configured anew takes the file that is there, or says why not."""
    model = tmp_path / 'model.onnx'
    shutil.copy(default_model, model)
    node = graph.add(DetectorNode, model_path=str(model), backend='onnx', detect_every_n=1)
    messages = graph.collect(Detection2DArray, 'detections')
    images.wait_for_subscribers()
    for content, reason in (
        (None, 'not found'),
        (b'', 'is empty'),
        (default_model.read_bytes()[:100_000], 'cannot load'),
        (b'<html>404</html>', 'cannot load'),
    ):
        model.unlink()
        if content is not None:
            model.write_bytes(content)
        stamp = images.send()
        graph.until(lambda stamp=stamp: is_answered(messages, stamp), 'detections')
        node.trigger_deactivate()
        node.trigger_cleanup()
        with pytest.raises(StartError):
            node.start()
        detector_says(graph, reason, DiagnosticStatus.ERROR)
        shutil.copy(default_model, model)
        node.start()
        images.wait_for_subscribers()
    make_nan_model(model, threshold=0.9)
    node.trigger_deactivate()
    node.trigger_cleanup()
    node.start()
    images.wait_for_subscribers()
    stamp = images.send()
    graph.until(lambda: is_answered(messages, stamp), 'detections of the other model')
    assert len(messages[-1].detections) == 1


def test_engine_that_raises_and_then_hangs(graph, images, run_faulty, end):
    process = run_faulty(detect_every_n=1, hang_after_s=0.5)
    messages = graph.collect(Detection2DArray, 'detections')
    reach(graph, images, messages)
    for brightness in (GREY, RAISES, GREY):
        stamp = images.send(image=level(brightness))
        if brightness == RAISES:
            detector_says(graph, 'fell off the bus', DiagnosticStatus.WARN)
        else:
            graph.until(lambda stamp=stamp: is_answered(messages, stamp), 'detections')
    assert graph.diagnostics['detector']['failed'] == '1'
    images.send(image=level(HANGS))
    detector_says(graph, 'the engine hangs', DiagnosticStatus.ERROR)
    sent = len(images.stamps_ns)
    graph.until(
        lambda: (
            int(graph.diagnostics['detector']['dropped']) >= 2
            or images.send(image=level(GREY)) is None
        ),
        'images that nobody works on',
    )
    stamps = images.stamps_ns[sent:]
    assert not any(is_answered(messages, stamp) for stamp in stamps)
    graph.processes.remove(process)
    output = end(process, signal.SIGINT)
    assert 'an inference does not end' in output


def test_storm_of_images_leaves_the_newest_and_no_memory(graph, images, run_faulty):
    """120 images a second of 640x480, and an engine that does 5: it would be 0.5 GB in a queue."""
    process = run_faulty(detect_every_n=1)
    messages = graph.collect(Detection2DArray, 'detections')
    image = np.full((480, 640, 3), SLOW, np.uint8)
    reach(graph, images, messages)
    memory = psutil.Process(process.pid).memory_info
    before = memory().rss
    due_s, sent = graph.node.get_clock().now().nanoseconds / 1e9, len(images.stamps_ns)
    while len(images.stamps_ns) < sent + 600:
        due_s += 1 / 120
        images.send(image=image)
        graph.spin_for(max(0.0, due_s - graph.node.get_clock().now().nanoseconds / 1e9))
    growth_mib = (memory().rss - before) / 2**20
    last = images.stamps_ns[-1]
    graph.until(lambda: is_answered(messages, last), 'the newest image')
    graph.until(
        lambda: int(graph.diagnostics['detector']['dropped']) > 300, 'dropped images, counted'
    )
    values = graph.diagnostics['detector']
    assert growth_mib < 64.0
    assert int(values['received']) >= int(values['detected']) + int(values['dropped'])
    # None is older than the one in work before it.
    assert float(values['queue_ms.p95']) < 2e3 * 0.2
    stamps = [stamp_ns(message.header) for message in messages]
    assert stamps == sorted(stamps)
    assert len(stamps) < 0.2 * len(images.stamps_ns)
