"""POST /detect: what it finds, what it refuses, and that nothing malformed hurts it."""

import itertools
import random
import socket
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import cv2
import numpy as np
import psutil
import pytest

from edge_perception.detection import Detector
from edge_perception.detection.backends import available_backends
from edge_perception.ros.paths import DEFAULT_MODEL, find_model


@pytest.fixture(scope='module')
def reference(people):
    """What the library finds on the picture itself."""
    with Detector(model_path=find_model(DEFAULT_MODEL), score_threshold=0.25) as detector:
        return detector(people)


def post(http, image, **options):
    return http.post('/detect', files={'file': ('picture', image)}, data=options)


def boxes(response):
    assert response.status_code == 200, response.text
    return np.array(
        [
            [d['x1'], d['y1'], d['x2'], d['y2'], d['confidence']]
            for d in response.json()['detections']
        ]
    ).reshape(-1, 5)


def test_finds_what_the_library_finds(http, png, reference):
    response = post(http, png)
    expected = np.hstack([reference.xyxy, reference.score[:, None]])
    np.testing.assert_allclose(boxes(response), expected, atol=0.02)
    answer = response.json()
    assert (answer['width'], answer['height']) == (768, 576)
    assert {d['label'] for d in answer['detections']} == {'person'}
    assert answer['backend'] in available_backends()
    parts = answer['latency_ms']
    assert parts['total'] >= parts['preprocess'] + parts['inference'] + parts['postprocess'] > 0


def test_score_threshold_is_the_clients(http, png):
    scores = boxes(post(http, png, score_threshold=0.001))[:, 4]
    assert 0.001 <= scores.min() < 0.25
    assert (boxes(post(http, png, score_threshold=0.8))[:, 4] >= 0.8).all()
    assert boxes(post(http, png))[:, 4].min() >= 0.25, 'the threshold of one request stays'


@pytest.mark.parametrize(
    ('options', 'text'),
    [
        ({'score_threshold': '1.5'}, 'score_threshold: expected a number from 0 to 1'),
        ({'score_threshold': 'nan'}, 'score_threshold: expected a number from 0 to 1'),
        ({'score_threshold': 'high'}, 'score_threshold: expected a number from 0 to 1'),
        ({'classes': 'unicorn'}, 'unknown class unicorn: the model has person'),
        ({'classes': '../../etc/passwd'}, 'unknown class'),
        ({'classes': 'x' * 2000}, 'classes: expected a short text'),
        ({'backend': 'abacus'}, 'backend: expected one of auto, onnx'),
        ({'backend': '../../evil.so'}, 'backend: expected one of'),
        ({'backend': 'a\x00b'}, 'backend: expected a short text'),
    ],
)
def test_option_that_does_not_fit_is_named(http, jpeg, options, text):
    response = post(http, jpeg, **options)
    assert response.status_code == 422
    assert text in response.json()['detail']


@pytest.mark.parametrize('options', [{'classes': 'person'}, {'backend': 'onnx'}, {'classes': ''}])
def test_option_that_fits(http, png, reference, options):
    assert len(boxes(post(http, png, **options))) == len(reference)


def test_photograph_is_turned_as_it_is_shown(http, people, reference):
    """EXIF orientation 6: the rows of the file are the columns of the picture."""
    stored = cv2.imencode('.jpg', cv2.rotate(people, cv2.ROTATE_90_COUNTERCLOCKWISE))[1].tobytes()
    entry = struct.pack('>HHIHH', 0x0112, 3, 1, 6, 0)
    tiff = b'MM\x00*\x00\x00\x00\x08\x00\x01' + entry + b'\x00\x00\x00\x00'
    exif = b'Exif\x00\x00' + tiff
    turned = stored[:2] + b'\xff\xe1' + struct.pack('>H', len(exif) + 2) + exif + stored[2:]
    response = post(http, turned)
    answer = response.json()
    assert (answer['width'], answer['height']) == (768, 576)
    np.testing.assert_allclose(boxes(response)[:3, :4], reference.xyxy[:3], atol=3.0)


@pytest.mark.parametrize(
    'shape', [(1, 1, 3), (2, 3000, 3), (3000, 2, 3), (40, 40), (40, 40, 4)], ids=str
)
@pytest.mark.parametrize('suffix', ['.png', '.jpg'])
def test_odd_images_are_images(http, shape, suffix):
    if shape[-1] == 4 and suffix == '.jpg':
        shape = (40, 40, 3)
    image = np.full(shape, 90, np.uint8)
    assert post(http, cv2.imencode(suffix, image)[1].tobytes()).status_code == 200


def test_sixteen_bit_png(http, people, reference):
    deep = cv2.imencode('.png', people.astype(np.uint16) * 257)[1].tobytes()
    assert len(boxes(post(http, deep))) == len(reference)


# Limits


def chunk(kind, body):
    return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))


def png_of(width, height):
    """A valid PNG of any size: grey, and small as a file."""
    packed = zlib.compressobj(9)
    row = b'\x00' * (width + 1)
    data = b''.join(packed.compress(row) for _ in range(height)) + packed.flush()
    header = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
    return (
        b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', data) + chunk(b'IEND', b'')
    )


@pytest.fixture(scope='module')
def bomb():
    """100 megapixels in 100 kB."""
    return png_of(10_000, 10_000)


def test_decompression_bomb_is_refused_unread(http, gateway, bomb):
    process = psutil.Process(gateway.process.pid)
    before = process.memory_info().rss
    started_s = time.perf_counter()
    response = post(http, bomb)
    assert response.status_code == 413
    assert '100 megapixels; at most 20' in response.json()['detail']
    assert time.perf_counter() - started_s < 1.0
    assert process.memory_info().rss - before < 50 * 2**20


def test_image_within_the_limit_of_pixels(http):
    assert post(http, png_of(4000, 5000)).status_code == 200


def test_body_too_large_by_its_length(http):
    response = post(http, b'\xff\xd8\xff' + bytes(5 * 2**20))
    assert response.status_code == 413
    assert 'larger than 4 MiB' in response.json()['detail']


def test_body_too_large_without_a_length(gateway):
    """A client that goes on and on is answered before it has ended."""
    head = (
        b'POST /detect HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n'
        b'Content-Type: multipart/form-data; boundary=b\r\n\r\n'
    )
    piece = bytes(2**16)
    with socket.create_connection(gateway.address, 10.0) as connection:
        connection.sendall(head)
        connection.settimeout(30.0)
        head_of_part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
        connection.sendall(b'%x\r\n' % len(head_of_part) + head_of_part + b'\r\n')
        with suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(2 * 4 * 16):
                connection.sendall(b'%x\r\n' % len(piece) + piece + b'\r\n')
        assert connection.recv(100).startswith(b'HTTP/1.1 413')


def slow_request(gateway):
    """A request whose body never ends; returns the connection when the gateway waits for it."""
    connection = socket.create_connection(gateway.address, 30.0)
    connection.sendall(
        b'POST /detect HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n'
        b'Connection: close\r\nExpect: 100-continue\r\n'
        b'Content-Type: multipart/form-data; boundary=b\r\n\r\n'
    )
    assert connection.recv(100).startswith(b'HTTP/1.1 100')
    connection.sendall(b'--b\r\n')
    return connection


def test_slow_body_is_given_up(gateway):
    with slow_request(gateway) as connection, connection.makefile('rb') as reader:
        answer = reader.read()
    assert answer.startswith(b'HTTP/1.1 408')
    assert b'did not arrive within 6 s' in answer


def test_too_many_requests_are_refused_at_once(gateway, http, jpeg):
    slow = [slow_request(gateway) for _ in range(4)]
    try:
        refusals = []
        for _ in range(5):
            started_s = time.perf_counter()
            response = post(http, jpeg)
            assert response.status_code == 503
            refusals.append(time.perf_counter() - started_s)
        assert '4 requests are in work already' in response.json()['detail']
        assert response.headers['retry-after'] == '1'
        assert np.median(refusals) < 1.0, 'a refusal waits for nothing'
        assert http.get('/health').status_code == 200, 'the rest answers all the same'
    finally:
        for connection in slow:
            connection.close()


def test_requests_at_the_same_time_do_not_mix(gateway, people, reference):
    """Each of several threads gets the answer to its own picture and its own threshold."""
    halves = [people[:, :384], people[:, 384:]]
    files = [cv2.imencode('.png', half)[1].tobytes() for half in halves]

    def ask(task):
        half, threshold = task
        with gateway.client() as client:
            while (
                response := post(client, files[half], score_threshold=threshold)
            ).status_code == 503:
                pass
        return boxes(response)

    tasks = list(itertools.product((0, 1), (0.1, 0.6))) * 4
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, tasks))
    alone = dict(zip(tasks[:4], answers[:4], strict=True))
    for task, answer in zip(tasks, answers, strict=True):
        np.testing.assert_array_equal(answer, alone[task])
        assert (answer[:, 4] >= task[1]).all()
    assert len(alone[0, 0.1]) > len(alone[0, 0.6])


# Malformed requests


def form(*parts, boundary=b'b'):
    body = b''.join(
        b'--' + boundary + b'\r\n' + head + b'\r\n\r\n' + data + b'\r\n' for head, data in parts
    )
    return body + b'--' + boundary + b'--\r\n'


def file_part(data, name=b'file', filename=b'f.jpg'):
    disposition = b'Content-Disposition: form-data; name="%s"; filename="%s"' % (name, filename)
    return disposition, data


PATHS = (
    b'../../../etc/passwd',
    b'C:\\\\windows\\\\x',
    b'%00.jpg',
    b'a' * 3000,
    b'\xff\xfe',
    b'|id',
)


def malformed(rng, jpeg, png, bomb):
    """One request that cannot be answered: content type and body."""
    multipart = 'multipart/form-data; boundary=b'
    picture = rng.choice([jpeg, png])
    cut = picture[: rng.randrange(len(picture) - 20)]
    noise = rng.randbytes(rng.randrange(1, 3000))
    whole = form(file_part(picture))
    kind = rng.randrange(17)
    if kind == 0:  # truncated image
        return multipart, form(file_part(cut))
    if kind == 1:  # truncated form
        return multipart, whole[: rng.randrange(len(whole) - 60)]
    if kind == 2:  # wrong type under the name of an image
        return multipart, form(file_part(noise, filename=b'photo.jpg'))
    if kind == 3:  # header of an image, then something else
        return multipart, form(file_part(picture[: rng.randrange(4, 20)] + noise))
    if kind == 4:
        return multipart, form(file_part(bomb))
    if kind == 5:  # a size that lies: gigapixels in the header
        lie = png[:16] + struct.pack('>II', rng.randrange(10**5, 2**31), 10**5) + png[24:]
        return multipart, form(file_part(lie))
    if kind == 6:  # names that look like paths
        return multipart, form(file_part(noise, filename=rng.choice(PATHS)))
    if kind == 7:
        return multipart, form(file_part(picture, name=rng.choice(PATHS)))
    if kind == 8:  # no file but text
        return multipart, form((b'Content-Disposition: form-data; name="file"', noise[:500]))
    if kind == 9:
        return multipart, form(file_part(b''))
    if kind == 10:
        return multipart, b''
    if kind == 11:  # too many parts
        return multipart, form(*[file_part(picture[:100])] * rng.randrange(2, 40))
    if kind == 12:  # a part without a name
        return multipart, form((b'Content-Type: image/jpeg', picture))
    if kind == 13:  # no boundary, or another one
        return rng.choice(['multipart/form-data', 'multipart/form-data; boundary=c']), whole
    if kind == 14:
        return rng.choice(['image/jpeg', 'application/json', 'text/plain', '', 'x']), picture
    if kind == 15:
        option = b'Content-Disposition: form-data; name="score_threshold"'
        value = rng.choice([b'2', b'-1', b'nan', b'1e400', b'0x1', b'\xff', b'1' * 5000])
        return multipart, form(file_part(picture), (option, value))
    return multipart, noise


def test_a_thousand_malformed_requests(gateway, http, jpeg, png, bomb):
    process = psutil.Process(gateway.process.pid)
    rng = random.Random(5)

    def send(number):
        content_type, body = malformed(random.Random(number), jpeg, png, bomb)
        while True:
            response = http.post('/detect', content=body, headers={'Content-Type': content_type})
            if response.status_code != 503:
                return number, response

    assert post(http, png).status_code == 200
    before, files_before = process.memory_info().rss, process.num_fds()
    with ThreadPoolExecutor(3) as pool:
        for number, response in pool.map(send, [rng.getrandbits(32) for _ in range(1000)]):
            assert 400 <= response.status_code < 500, (number, response.text)
            assert response.headers['content-type'] == 'application/json'
            assert list(response.json()) == ['detail']
            detail = response.json()['detail']
            assert detail
            assert '\n' not in detail
            assert 'Traceback' not in detail
    assert post(http, png).status_code == 200, 'the process lives'
    assert process.memory_info().rss - before < 100 * 2**20
    assert process.num_fds() - files_before < 20
