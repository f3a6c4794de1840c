"""The gateway beside and inside of a running pipeline."""

import json
import threading
import time

import cv2
import httpx
import numpy as np
import pytest
from rosbags.highlevel import AnyReader

from edge_perception.nodes.detector import DetectorNode
from edge_perception.nodes.gateway import GatewayNode
from edge_perception.nodes.metrics import MetricsNode
from edge_perception.nodes.tracker import TrackerNode
from edge_perception.nodes.visualizer import VisualizerNode
from edge_perception.ros.links import Links
from edge_perception.types import Frame

pytestmark = pytest.mark.usefixtures('impatient')


class Asking:
    """Calls a function on a thread while the graph spins."""

    def __init__(self, graph):
        self._graph = graph

    def __call__(self, function, *arguments, **options):
        answers = []

        def run():
            try:
                answers.append(function(*arguments, **options))
            except Exception as error:
                answers.append(error)

        threading.Thread(target=run, daemon=True).start()
        self._graph.until(lambda: answers, 'an answer')
        if isinstance(answers[0], Exception):
            raise answers[0]
        return answers[0]


@pytest.fixture
def asking(graph):
    return Asking(graph)


def client(url):
    return httpx.Client(base_url=url, timeout=20.0, trust_env=False)


def post(url, image, **options):
    with client(url) as http:
        return http.post('/detect', files={'file': ('picture', image)}, data=options)


def get(url, path):
    with client(url) as http:
        return http.get(path)


class Pipeline:
    """Nodes of one process, and a camera that sends frames to them at an even rate."""

    def __init__(self, graph, image, **detector):
        self.links = Links()
        self.metrics = graph.add(MetricsNode, links=self.links)
        self.gateway = graph.add(GatewayNode, links=self.links, port=0, request_timeout_s=3.0)
        self.tracker = graph.add(TrackerNode, links=self.links)
        self.detector = graph.add(DetectorNode, links=self.links, **detector)
        self.url = self.gateway.url
        self.sent = 0
        self._image = image
        self._ending = threading.Event()
        self._thread = None

    def play(self, rate_hz):
        def run():
            due_s = time.monotonic()
            while not self._ending.is_set():
                self.sent += 1
                self.links.frames.send(Frame(self._image, time.time_ns(), 'camera'))
                due_s += 1 / rate_hz
                self._ending.wait(max(due_s - time.monotonic(), 0.0))

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def stop(self):
        self._ending.set()
        if self._thread:
            self._thread.join()


@pytest.fixture
def pipeline(graph, people):
    started = []

    def start(**detector):
        started.append(Pipeline(graph, people, **detector))
        return started[-1]

    yield start
    for each in started:
        each.stop()


def test_requests_share_the_running_detector_and_leave_it_as_it_was(graph, asking, pipeline, jpeg):
    running = pipeline(score_threshold=0.1)
    found = asking(post, running.url, jpeg, score_threshold='0.7').json()
    assert len(found['detections']) >= 2
    assert all(each['confidence'] >= 0.7 for each in found['detections'])
    assert running.detector._detector.score_threshold == 0.1
    assert not running.gateway._detectors, 'no second model was loaded'
    refused = asking(post, running.url, jpeg, backend='pytorch')
    assert refused.status_code == 422
    assert 'share the running detector' in refused.json()['detail']
    unknown = asking(post, running.url, jpeg, classes='unicorn')
    assert (unknown.status_code, unknown.json()['detail']) == (
        422,
        'unknown class unicorn: the model has person',
    )
    assert running.detector._detector.classes == ()
    graph.until(
        lambda: asking(get, running.url, '/metrics').json()['inference_count'] == 1, 'the count'
    )


def test_requests_fit_in_between_the_live_images(graph, asking, pipeline, jpeg):
    running = pipeline(detect_every_n=5)
    running.play(rate_hz=10.0)
    lane = running.detector.cameras[0].lane
    graph.until(lambda: lane.counts.processed >= 3, 'detections')
    statuses = []
    ending = threading.Event()

    def hammer():
        while not ending.is_set():
            statuses.append(post(running.url, jpeg).status_code)

    threads = [threading.Thread(target=hammer, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    running.detector.latencies.reset()
    before = lane.counts.processed
    graph.until(lambda: lane.counts.processed >= before + 8, 'more detections')
    summaries = running.detector.latencies.summaries()
    ending.set()
    for thread in threads:
        graph.until(lambda thread=thread: not thread.is_alive(), 'the end of the requests')
    assert statuses.count(200) >= 8, statuses
    assert set(statuses) <= {200, 503}
    assert lane.counts.dropped == 0
    # A live image that came while a request was in work would have waited for the rest of it.
    assert summaries['queue'].p50_ms < 0.2 * summaries['inference'].p50_ms


def test_request_is_refused_at_once_when_the_live_images_leave_no_time(
    graph, asking, pipeline, jpeg
):
    running = pipeline(detect_every_n=1)
    running.play(rate_hz=200.0)
    graph.until(lambda: running.detector.pace.is_full, 'a detector that is fully used')
    started_s = time.monotonic()
    response = asking(post, running.url, jpeg)
    assert time.monotonic() - started_s < 2.0
    assert response.status_code == 503
    assert 'raise detect_every_n' in response.json()['detail']
    assert response.headers['retry-after'] == '1'


def test_inactive_detector_is_named(graph, asking, pipeline, jpeg):
    running = pipeline()
    graph.until(lambda: asking(get, running.url, '/health').status_code == 200, 'good health')
    running.detector.trigger_deactivate()
    response = asking(post, running.url, jpeg)
    assert (response.status_code, response.json()['detail']) == (503, 'the detector is inactive')
    graph.until(lambda: asking(get, running.url, '/health').status_code == 503, 'ill health')

    def detector_is_named():
        health = asking(get, running.url, '/health').json()
        assert health['nodes']['detector']['state'] == 'inactive'
        return any(reason.startswith('detector: ') for reason in health['why_no_output'])

    graph.until(detector_is_named, 'the reason')
    running.detector.trigger_activate()
    graph.until(lambda: asking(get, running.url, '/health').status_code == 200, 'good health')


def test_tracks_of_the_newest_image_have_age_and_source(graph, asking, pipeline):
    running = pipeline(detect_every_n=1)
    running.play(rate_hz=10.0)
    graph.until(lambda: asking(get, running.url, '/tracks').json()['tracks'], 'tracks')
    answer = asking(get, running.url, '/tracks').json()
    assert answer['frame_id'] == 'camera'
    assert 0.0 <= answer['age_s'] < 5.0
    for track in answer['tracks']:
        assert track['label'] == 'person'
        assert track['source'] in ('detected', 'predicted')
        assert track['x1'] < track['x2']
        assert track['age_s'] >= 0.0


def test_video_is_drawn_while_somebody_watches_and_not_longer(graph, asking, pipeline):
    running = pipeline()
    visualizer = graph.add(VisualizerNode, links=running.links)
    running.play(rate_hz=10.0)
    graph.until(lambda: running.tracker._frames.counts.processed > 3, 'tracks')
    assert visualizer._lane.counts.received == 0
    pictures = []

    def watch():
        with client(running.url) as http, http.stream('GET', '/stream.mjpg') as response:
            data = b''
            for chunk in response.iter_bytes():
                data += chunk
                while (end := data.find(b'\r\n\r\n')) >= 0:
                    length = int(data[:end].split(b'Content-Length: ')[1].split(b'\r\n')[0])
                    if len(data) < end + 4 + length + 2:
                        break
                    pictures.append(data[end + 4 : end + 4 + length])
                    data = data[end + 4 + length + 2 :]
                if len(pictures) >= 4:
                    return

    asking(watch)
    image = cv2.imdecode(np.frombuffer(pictures[-1], np.uint8), cv2.IMREAD_COLOR)
    assert image.shape == (576, 768, 3)
    graph.until(lambda: not visualizer._output.is_watched, 'the end of the interest')
    drawn = visualizer._lane.counts.received
    sent = running.sent
    graph.until(lambda: running.sent > sent + 5, 'more images')
    assert visualizer._lane.counts.received == drawn


def test_gateway_in_a_process_of_its_own_sees_the_others(graph, asking, images, people):
    gateway = graph.add(GatewayNode, port=0, silent_after_s=1.5)
    tracker = graph.run('tracker')
    graph.run('detector', detect_every_n=1)
    images.image = people
    images.wait_for_subscribers(2)

    def tracked():
        if images.is_due(0.1):
            images.send()
        return asking(get, gateway.url, '/tracks').json()['tracks']

    graph.until(tracked, 'tracks')
    answer = asking(get, gateway.url, '/tracks').json()
    assert answer['tracks'][0]['label'] == 'person'
    assert answer['tracks'][0]['age_s'] is None, 'messages do not tell it'
    assert answer['stamp_ns'] in images.stamps_ns
    graph.until(lambda: asking(get, gateway.url, '/health').status_code == 200, 'good health')
    graph.processes.remove(tracker)
    tracker.kill()
    tracker.communicate()
    graph.until(lambda: asking(get, gateway.url, '/health').status_code == 503, 'ill health')
    assert asking(get, gateway.url, '/health').json()['nodes']['tracker']['level'] == 'stale'


def test_full_lifecycle_twice_on_the_same_port(graph, asking):
    gateway = graph.add(GatewayNode, port=0, nodes='')
    for _ in range(2):
        assert asking(get, gateway.url, '/health').status_code == 200
        url = gateway.url
        gateway.trigger_deactivate()
        with pytest.raises(httpx.TransportError):
            asking(get, url, '/health')
        gateway.trigger_activate()
    gateway.trigger_deactivate()
    gateway.trigger_cleanup()


FRAMES = 90


def test_numbers_equal_those_of_the_bag_that_the_demo_records(
    demo_beginning, tmp_path, free_port, start_demo
):
    clip = demo_beginning(FRAMES)
    out = tmp_path / 'out'
    port = str(free_port())
    process = start_demo('--source', clip, '--every-n', '2', '--port', port, '--out', out)
    metrics = {}
    pause = threading.Event()
    with client(f'http://127.0.0.1:{port}') as http:
        while process.poll() is None:
            try:
                answer = http.get('/metrics').json()
            except (httpx.TransportError, json.JSONDecodeError):
                answer = {}  # not there yet, or no more
            if answer.get('fps'):
                metrics = answer
            pause.wait(0.1)
    output, _ = process.communicate()
    assert process.returncode == 0, output

    # The last answer came up to a second before the end: compared is what it speaks of.
    count, inferences = metrics['latency_ms']['count'], metrics['inference_count']
    assert count > FRAMES / 2
    published_ns, latencies_ms, detections = [], [], 0
    with AnyReader([out / 'bag']) as reader:
        for connection, time_ns, data in reader.messages():
            if connection.topic == '/tracks':
                stamp = reader.deserialize(data, connection.msgtype).header.stamp
                published_ns.append(time_ns)
                latencies_ms.append((time_ns - stamp.sec * 10**9 - stamp.nanosec) / 1e6)
            detections += connection.topic == '/detections'
    first = np.array(latencies_ms[:count])
    assert metrics['latency_ms']['avg'] == pytest.approx(first.mean(), rel=0.02)
    for percent in (50, 90, 95, 99):
        expected = np.percentile(first, percent, method='inverted_cdf')
        assert metrics['latency_ms'][f'p{percent}'] == pytest.approx(expected, rel=0.02), percent
    last_ns = published_ns[count - 1]
    recent_ns = [time_ns for time_ns in published_ns[:count] if time_ns > last_ns - 5 * 10**9]
    rate_hz = (len(recent_ns) - 1) / (last_ns - recent_ns[0]) * 1e9
    assert metrics['fps'] == pytest.approx(rate_hz, rel=0.02)
    assert sum(metrics['backend_usage'].values()) == inferences
    assert detections * 0.8 < inferences <= detections
