"""The live page in a real browser, with a real pipeline behind it."""

import re
from pathlib import Path

import pytest

from .browser import Browser

OUT = Path(__file__).resolve().parent.parent.parent / 'out'
PICTURES = "return Number(document.getElementById('video').dataset.pictures || 0)"


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp('browser')) as browser:
        yield browser


@pytest.fixture(scope='module')
def page(browser, pipeline_url):
    browser.resize(1280, 900)
    browser.open(f'{pipeline_url}/')
    browser.until(f'{PICTURES} > 5', 'pictures')
    return browser


def test_page_shows_video_tracks_plots_and_health(page):
    page.until("return document.querySelectorAll('#tracks .swatch').length >= 2", 'tracks')
    page.until("return document.querySelectorAll('#nodes tr').length >= 6", 'nodes')
    assert page.run("return document.getElementById('no-video').hidden")
    assert page.run("return document.getElementById('video').width") == 768
    assert float(page.run("return document.getElementById('fps').textContent")) > 5.0
    assert re.fullmatch(
        r'\d+\.\d ms', page.run("return document.getElementById('p95').textContent")
    )
    assert page.run("return document.getElementById('status').textContent").startswith('running')
    painted = page.until(
        """
        const canvas = document.getElementById('latency-plot');
        const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
        return new Set(new Uint32Array(data.buffer)).size > 10;
        """,
        'a plot',
    )
    assert painted
    page.screenshot(OUT / 'live_page_desktop.png')


def test_picture_in_the_page_is_the_video_and_changes(page):
    mean = """
        const canvas = document.getElementById('video');
        const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
        return data.reduce((sum, value) => sum + value, 0) / data.length;
    """
    first, pictures = page.run(mean), page.run(PICTURES)
    assert 40 < first < 230
    page.until(f'{PICTURES} > {pictures + 3}', 'more pictures')
    assert page.run(mean) != first


def test_page_fits_a_phone(page):
    page.resize(390, 844, dark=True)
    page.until('return innerWidth === 390', 'the size')
    assert page.run('return document.documentElement.scrollWidth') <= 390
    narrow = """
        return [...document.querySelectorAll('.card')].filter((card) => {
          const box = card.getBoundingClientRect();
          return box.width && (box.left < 0 || box.right > innerWidth);
        }).length;
    """
    assert page.run(narrow) == 0
    background = page.run('return getComputedStyle(document.body).backgroundColor')
    assert max(int(value) for value in re.findall(r'\d+', background)[:3]) < 60, 'dark is dark'
    page.screenshot(OUT / 'live_page_phone.png')
    page.resize(1280, 900)


def test_nothing_comes_from_other_hosts_and_nothing_complains(page, pipeline_url):
    urls = [url for url in page.requested_urls() if url.startswith('http')]
    assert urls
    assert {url for url in urls if not url.startswith(pipeline_url)} == set()
    assert page.problems() == []


def test_interface_page_describes_detect(page, pipeline_url):
    page.open(f'{pipeline_url}/docs')
    text = page.until(
        "return document.body.innerText.includes('/detect') && document.body.innerText", ''
    )
    for word in ('score_threshold', 'GET /metrics', 'DetectResult'):
        assert word in text
    assert page.problems() == []


def test_page_asks_for_the_token(browser, running):
    gateway = running(environment={'EDGE_PERCEPTION_TOKEN': 'horse'})
    browser.open(f'{gateway.url}/')
    browser.until("return !document.getElementById('login').hidden", 'the question')
    assert browser.run("return document.getElementById('main').hidden")
    browser.run(
        """
        document.getElementById('token').value = 'horse';
        document.querySelector('#token-form button').click();
        """
    )
    browser.until("return !document.getElementById('main').hidden", 'the page')
    browser.until("return document.querySelectorAll('#nodes tr').length >= 1", 'the nodes')
