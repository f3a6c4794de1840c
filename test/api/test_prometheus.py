"""Configuration for Prometheus and Grafana, against a real Prometheus and a real pipeline."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

CONFIG = Path(__file__).resolve().parent.parent.parent / 'config'
PREFIX = 'edge_perception_'
# Machines without a GPU or with no sensor that the kernel shows do not export these.
HARDWARE = re.compile(rf'{PREFIX}(gpu_\w+|temperature_celsius)')


def tool(name):
    path = shutil.which(name)
    if path is None:
        pytest.skip(f'prometheus is not installed (no {name})')
    return path


def expressions():
    dashboard = json.loads((CONFIG / 'grafana_dashboard.json').read_text())
    rules = yaml.safe_load((CONFIG / 'prometheus_rules.yaml').read_text())
    found = {
        f'{panel["title"]} {target["refId"]}': target['expr']
        for panel in dashboard['panels']
        for target in panel['targets']
    }
    for group in rules['groups']:
        found.update({rule['alert']: rule['expr'] for rule in group['rules']})
    return found


@pytest.fixture(scope='module')
def exported(pipeline_url):
    """Names of all series, by Prometheus' own parser."""
    text = httpx.get(f'{pipeline_url}/metrics/prometheus', trust_env=False).text
    return {
        sample.name for family in text_string_to_metric_families(text) for sample in family.samples
    }


@pytest.mark.parametrize('name', sorted(expressions()))
def test_every_metric_of_dashboard_and_rules_is_exported(exported, name):
    used = set(re.findall(rf'{PREFIX}\w+', expressions()[name]))
    missing = {metric for metric in used - exported if not HARDWARE.fullmatch(metric)}
    assert not missing


def test_every_gpu_metric_is_one_that_the_gateway_knows():
    from edge_perception.api import prometheus

    known = Path(prometheus.__file__).read_text()
    for expression in expressions().values():
        for metric in HARDWARE.finditer(expression):
            assert f"'{metric[0].removeprefix(PREFIX)}'" in known


def test_exported_text_passes_promtool(pipeline_url):
    text = httpx.get(f'{pipeline_url}/metrics/prometheus', trust_env=False).content
    check = subprocess.run([tool('promtool'), 'check', 'metrics'], input=text, capture_output=True)
    assert check.returncode == 0, check.stdout + check.stderr


def test_configuration_and_rules_pass_promtool():
    check = subprocess.run(
        [tool('promtool'), 'check', 'config', CONFIG / 'prometheus.yaml'], capture_output=True
    )
    assert check.returncode == 0, check.stderr


@pytest.fixture(scope='module')
def prometheus(pipeline_url, tmp_path_factory, free_port, until):
    """A real Prometheus that scrapes the pipeline with the project's configuration."""
    program = tool('prometheus')
    folder = tmp_path_factory.mktemp('prometheus')
    config = yaml.safe_load((CONFIG / 'prometheus.yaml').read_text())
    config['global'] = {'scrape_interval': '500ms', 'evaluation_interval': '500ms'}
    job = config['scrape_configs'][0]
    job['static_configs'][0]['targets'] = [pipeline_url.removeprefix('http://')]
    (folder / 'prometheus.yaml').write_text(yaml.safe_dump(config))
    shutil.copy(CONFIG / 'prometheus_rules.yaml', folder)
    port = free_port()
    process = subprocess.Popen(
        [
            program,
            f'--config.file={folder / "prometheus.yaml"}',
            f'--storage.tsdb.path={folder / "data"}',
            f'--web.listen-address=127.0.0.1:{port}',
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with httpx.Client(base_url=f'http://127.0.0.1:{port}', trust_env=False) as client:
            until(lambda: is_ready(client), 'Prometheus')
            yield client
    finally:
        process.terminate()
        process.wait(20.0)


def is_ready(client):
    try:
        return client.get('/-/ready').status_code == 200
    except httpx.TransportError:
        return False


def query(prometheus, expression):
    response = prometheus.get('/api/v1/query', params={'query': expression})
    assert response.status_code == 200, response.text
    return response.json()['data']['result']


@pytest.fixture
def wait_for_series(prometheus, until):
    """Waits until a query has a result."""
    return lambda expression: until(lambda: query(prometheus, expression), expression)


def test_prometheus_scrapes_and_every_panel_has_data(prometheus, pipeline_url, wait_for_series):
    wait_for_series('count_over_time(edge_perception_healthy[1m]) > 6')
    (up,) = query(prometheus, 'up{job="edge_perception"}')
    assert up['value'][1] == '1'
    instance = pipeline_url.removeprefix('http://')
    empty = []
    for name, expression in expressions().items():
        expression = expression.replace('$instance', instance).replace('$__rate_interval', '10s')
        is_alert = name.startswith('Perception')
        result = query(prometheus, expression)
        if not result and not is_alert and not HARDWARE.search(expression):
            empty.append(name)
    assert not empty


def test_quantiles_of_prometheus_agree_with_the_json_numbers(
    prometheus, pipeline_url, wait_for_series
):
    """Five buckets a decade: a quantile is within the width of a bucket, a factor of 1.58."""
    selector = '{node="tracker", stage="end_to_end"}'
    wait_for_series(f'edge_perception_stage_latency_seconds_count{selector} > 20')
    # Over all buckets since the start, not over a rate: the window of the JSON holds the same.
    (result,) = query(
        prometheus,
        'histogram_quantile(0.5, sum by (le) '
        f'(edge_perception_stage_latency_seconds_bucket{selector}))',
    )
    metrics = httpx.get(f'{pipeline_url}/metrics', trust_env=False).json()
    ratio = float(result['value'][1]) * 1e3 / metrics['latency_ms']['p50']
    assert 1 / 1.7 < ratio < 1.7


def test_rules_are_loaded(prometheus, wait_for_series):
    wait_for_series('up')
    groups = prometheus.get('/api/v1/rules').json()['data']['groups']
    assert [group['name'] for group in groups] == ['edge_perception']
    assert len(groups[0]['rules']) >= 5
