"""What the gateway answers, and to whom; over real connections."""

import json
import re
import socket
import subprocess
from contextlib import suppress

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

PATHS = ('/health', '/metrics', '/metrics/prometheus', '/tracks', '/docs', '/openapi.json', '/')


@pytest.mark.parametrize('path', PATHS)
def test_every_path_answers(http, path):
    response = http.get(path)
    assert response.status_code == 200
    assert response.content
    assert response.headers['x-content-type-options'] == 'nosniff'


def test_health_of_a_gateway_that_needs_no_other_node(http):
    health = http.get('/health').json()
    assert health['status'] == 'ok'
    assert health['why_no_output'] == []


def test_metrics_have_the_shape_of_the_reference(http):
    metrics = http.get('/metrics').json()
    assert {'inference_count', 'latency_ms', 'fps', 'cpu_percent', 'backend_usage'} <= set(metrics)
    assert {'avg', 'p50', 'p90', 'p95'} <= set(metrics['latency_ms'])


@pytest.mark.parametrize(
    ('accept', 'kind'),
    [
        ('*/*', 'application/json'),  # curl
        ('text/html,application/xhtml+xml,*/*;q=0.8', 'application/json'),  # a browser
        ('application/json', 'application/json'),
        ('text/plain', 'text/plain'),
        ('text/plain;q=0.5, application/json', 'application/json'),
        ('text/plain;q=rubbish', 'application/json'),
        (  # Prometheus 2 and 3
            'application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1',
            'application/openmetrics-text',
        ),
    ],
)
def test_metrics_are_json_unless_text_is_preferred(http, accept, kind):
    response = http.get('/metrics', headers={'Accept': accept})
    assert response.headers['content-type'].split(';')[0] == kind


def test_prometheus_text_is_read_by_its_own_parser(http):
    http.get('/health')
    families = {
        f.name: f for f in text_string_to_metric_families(http.get('/metrics/prometheus').text)
    }
    responses = families['edge_perception_http_responses'].samples
    assert any(
        s.labels == {'path': '/health', 'status': '200'} and s.value >= 1 for s in responses
    )


def test_scanner_does_not_grow_the_table_of_paths(http):
    for number in range(50):
        assert http.get(f'/wp-admin/{number}').status_code == 404
    text = http.get('/metrics/prometheus').text
    assert 'wp-admin' not in text
    assert re.search(r'http_responses_total\{path="other",status="404"\} [5-9]\d', text)


def test_tracks_before_the_first_image(http):
    assert http.get('/tracks').json() == {
        'stamp_ns': None,
        'age_s': None,
        'frame_id': '',
        'tracks': [],
    }


@pytest.mark.parametrize(
    ('method', 'path', 'status'),
    [
        ('GET', '/no/such/path', 404),
        ('GET', '/..%2f..%2fetc%2fpasswd', 404),
        ('GET', '/detect', 405),
        ('DELETE', '/health', 405),
        ('POST', '/metrics', 405),
    ],
)
def test_what_is_not_there_is_one_line(http, method, path, status):
    response = http.request(method, path)
    assert response.status_code == status
    assert list(response.json()) == ['detail']
    assert '\n' not in response.json()['detail']


@pytest.mark.parametrize(
    ('headers', 'status'),
    [
        ({'Host': 'attacker.example'}, 403),  # DNS rebinding
        ({'Host': 'localhost.attacker.example:8000'}, 403),
        ({'Origin': 'https://attacker.example'}, 403),  # a page of another site
        ({'Origin': 'null'}, 403),
        ({'Host': 'localhost:8000'}, 200),
        ({'Host': 'localhost:8000', 'Origin': 'http://localhost:8000'}, 200),
        ({'Host': '[::1]:8000'}, 200),
    ],
)
def test_only_this_machine_and_its_own_page_may_ask(http, headers, status):
    assert http.get('/tracks', headers=headers).status_code == status


def test_other_addresses_of_this_machine_alone_are_no_other_hosts(running):
    gateway = running(host='127.0.0.2')
    assert httpx.get(f'{gateway.url}/tracks', trust_env=False).status_code == 200


def test_nothing_is_loaded_from_other_hosts(http):
    for path in ('/', '/docs'):
        page = http.get(path).text
        assert not re.search(r'(src|href|url)\s*[=(]\s*["\']?(https?:)?//', page)
        assert "default-src 'self'" in http.get(path).headers['content-security-policy']


TOKEN = 'correct-horse'


@pytest.fixture(scope='module')
def guarded(running):
    """Reachable from other machines, with a token."""
    return running(host='0.0.0.0', environment={'EDGE_PERCEPTION_TOKEN': TOKEN})


@pytest.mark.parametrize(
    ('headers', 'status'),
    [
        ({}, 401),
        ({'Authorization': 'Bearer wrong'}, 401),
        ({'Authorization': TOKEN}, 401),
        ({'Authorization': f'Basic {TOKEN}'}, 401),
        ({'Authorization': 'Bearer \xe9'.encode('latin-1')}, 401),
        ({'Authorization': f'Bearer {TOKEN}'}, 200),
        ({'Authorization': f'bearer {TOKEN}'}, 200),
    ],
)
@pytest.mark.parametrize('path', ['/tracks', '/metrics', '/metrics/prometheus', '/health'])
def test_token_is_needed(guarded, headers, status, path):
    url = guarded.url.replace('0.0.0.0', '127.0.0.1')
    response = httpx.get(url + path, headers=headers, trust_env=False)
    assert response.status_code == status
    if status == 401:
        assert response.headers['www-authenticate'] == 'Bearer'


def test_page_without_a_token_holds_nothing(guarded):
    url = guarded.url.replace('0.0.0.0', '127.0.0.1')
    assert 'wants a token' in httpx.get(url + '/', trust_env=False).text


@pytest.fixture
def refusal(tmp_path, start_gateway):
    """The output of a gateway that does not start."""

    def run(**options):
        log = tmp_path / 'log.txt'
        process = start_gateway(log, **options)
        try:
            status = process.wait(20.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        assert status == 1
        errors = [line for line in log.read_text().splitlines() if 'ERROR' in line]
        assert len(errors) == 1, log.read_text()
        return errors[0]

    return run


def test_refuses_other_addresses_without_a_token(refusal):
    line = refusal(host='0.0.0.0')
    assert '0.0.0.0 can be reached from other machines: set a token' in line


def test_port_in_use_is_one_line(refusal, gateway):
    line = refusal(port=gateway.address[1])
    assert f'cannot listen on 127.0.0.1:{gateway.address[1]}: Address already in use' in line


def test_unreadable_token_file_is_one_line(refusal, tmp_path):
    assert 'token_file' in refusal(token_file=tmp_path / 'nothing')


def test_address_of_another_machine_is_one_line(refusal, tmp_path):
    token = tmp_path / 'token'
    token.write_text('secret\n')
    assert 'cannot listen on 192.0.2.1' in refusal(host='192.0.2.1', token_file=token)


def exchange(address, *parts):
    """Send bytes, and return what comes until the other side closes or has answered."""
    received = b''
    with socket.create_connection(address, 10.0) as connection:
        # A server that refuses closes while this side still sends.
        with suppress(ConnectionResetError, BrokenPipeError):
            for part in parts:
                connection.sendall(part)
        with suppress(ConnectionResetError):
            while b'\r\n\r\n' not in received and (chunk := connection.recv(65536)):
                received += chunk
    return received


@pytest.mark.parametrize(
    'parts',
    [
        (b'rubbish\r\n\r\n',),
        (b'GET / HTTP/9.9\r\n\r\n',),
        (b'\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03',),  # TLS
        (b'GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n',),
        (b'GET http://[ HTTP/1.1\r\nHost: localhost\r\n\r\n',),
        (b'POST /detect HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n',),
        (b'POST /detect HTTP/1.1\r\nHost: localhost\r\n', b'Content-Length: 9\r\n' * 2, b'\r\n'),
        (b'GET / HTTP/1.1\r\nHost: localhost\r\n', *[b'X-Long: ' + b'a' * 1000 + b'\r\n'] * 65),
    ],
    ids=['rubbish', 'version', 'tls', 'path', 'url', 'negative', 'two lengths', 'endless headers'],
)
def test_what_is_no_http_is_a_4xx_and_the_gateway_lives(gateway, http, parts):
    answer = exchange(gateway.address, *parts)
    assert re.match(rb'HTTP/1.1 4\d\d ', answer)
    assert b'Traceback' not in answer
    assert http.get('/health').status_code == 200


def test_viewer_that_left_is_noticed_though_no_picture_comes(gateway, http, until):
    def viewers():
        return http.get('/metrics').json()['requests']['viewers']

    with gateway.client() as client, client.stream('GET', '/stream.mjpg') as response:
        assert response.headers['content-type'].startswith('multipart/x-mixed-replace')
        until(lambda: viewers() == 1, 'the viewer')
    until(lambda: viewers() == 0, 'its end')


def test_too_many_viewers_are_refused(running, until):
    gateway = running(max_viewers=1)
    with gateway.client() as client, client.stream('GET', '/stream.mjpg'):
        with gateway.client() as other:
            until(lambda: other.get('/metrics').json()['requests']['viewers'] == 1, 'it')
            response = other.get('/stream.mjpg')
        assert response.status_code == 503
        assert response.headers['retry-after'] == '1'


def test_openapi_describes_every_answer_of_detect(http):
    schema = json.loads(http.get('/openapi.json').text)
    responses = schema['paths']['/detect']['post']['responses']
    assert {'200', '400', '403', '408', '413', '415', '422', '503', '504'} == set(responses)
