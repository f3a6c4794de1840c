"""Requests made up from the OpenAPI description: every answer is one that it announces."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
ENDLESS = {('/stream.mjpg', 'get')}  # has tests of its own
OPERATIONS = {
    ('/health', 'get'),
    ('/metrics', 'get'),
    ('/metrics/prometheus', 'get'),
    ('/tracks', 'get'),
    ('/detect', 'post'),
}


@pytest.fixture(scope='module')
def schema(gateway):
    return schemathesis.openapi.from_url(f'{gateway.url}/openapi.json')


def test_every_operation_is_tested(http):
    paths = http.get('/openapi.json').json()['paths']
    described = {(path, method) for path, methods in paths.items() for method in methods}
    assert described == OPERATIONS | ENDLESS


@pytest.mark.parametrize(('path', 'method'), sorted(OPERATIONS))
def test_answers_are_as_described(gateway, schema, path, method):
    # Forms that break the description are in test_detect: more, and worse ones.
    cases = schema[path][method].as_strategy(generation_mode=GenerationMode.POSITIVE)
    examples = 300 if path == '/detect' else 10

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=cases)
    def check(case):
        case.call_and_validate(base_url=gateway.url, checks=CHECKS)

    check()
