"""Headless Chromium, driven through chromedriver's own interface (W3C WebDriver)."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

FLAGS = (
    '--headless=new',
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
    '--disable-dev-shm-usage',
    '--hide-scrollbars',
)
DEADLINE_S = 40.0


class Browser:
    """One window of a browser. A context manager."""

    def __init__(self, profile: Path, *, dark: bool = False) -> None:
        driver, chromium = shutil.which('chromedriver'), shutil.which('chromium')
        if not driver or not chromium:
            pytest.skip('chromium is not installed (packages chromium and chromium-driver)')
        self._process = subprocess.Popen(
            [driver, '--port=0'], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        port = None
        for line in self._process.stdout:
            if match := re.search(r'on port (\d+)\.', line):
                port = match[1]
                break
        assert port, 'chromedriver did not start'
        self._http = httpx.Client(base_url=f'http://127.0.0.1:{port}', timeout=60.0)
        flags = [*FLAGS, f'--user-data-dir={profile}', *(['--force-dark-mode'] if dark else [])]
        options = {'goog:chromeOptions': {'binary': chromium, 'args': flags}}
        options['goog:loggingPrefs'] = {'browser': 'ALL', 'performance': 'ALL'}
        created = self._post('/session', {'capabilities': {'alwaysMatch': options}})
        self._session = f'/session/{created["sessionId"]}'

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        response = self._http.post(path, json=body)
        assert response.status_code == 200, response.text
        return response.json()['value']

    def open(self, url: str) -> None:
        self._post(f'{self._session}/url', {'url': url})

    def run(self, script: str) -> Any:
        """The value that a script returns."""
        return self._post(f'{self._session}/execute/sync', {'script': script, 'args': []})

    def until(self, script: str, what: str) -> Any:
        """Wait for a script to return something true."""
        end_s = time.monotonic() + DEADLINE_S
        while not (value := self.run(script)):
            assert time.monotonic() < end_s, (
                f'waited for {what}: {self.run("return document.body.innerText")}'
            )
        return value

    def resize(self, width: int, height: int, *, dark: bool = False) -> None:
        """The size and colour scheme that the page sees, whatever the window's least width is."""
        for command, parameters in (
            (
                'Emulation.setDeviceMetricsOverride',
                {'width': width, 'height': height, 'deviceScaleFactor': 2, 'mobile': width < 600},
            ),
            (
                'Emulation.setEmulatedMedia',
                {
                    'features': [
                        {'name': 'prefers-color-scheme', 'value': 'dark' if dark else 'light'}
                    ]
                },
            ),
        ):
            self._post(f'{self._session}/goog/cdp/execute', {'cmd': command, 'params': parameters})

    def screenshot(self, path: Path) -> None:
        """A picture of the whole page."""
        path.parent.mkdir(parents=True, exist_ok=True)
        answer = self._post(
            f'{self._session}/goog/cdp/execute',
            {'cmd': 'Page.captureScreenshot', 'params': {'captureBeyondViewport': True}},
        )
        path.write_bytes(base64.b64decode(answer['data']))

    def problems(self) -> list[str]:
        """What the page's console complained about."""
        entries = self._post(f'{self._session}/se/log', {'type': 'browser'})
        return [entry['message'] for entry in entries if entry['level'] == 'SEVERE']

    def requested_urls(self) -> list[str]:
        """Everything that the page asked for."""
        entries = self._post(f'{self._session}/se/log', {'type': 'performance'})
        return re.findall(
            r'"request":\{.*?"url":"([^"]+)"', '\n'.join(e['message'] for e in entries)
        )

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *rest: object) -> None:
        self._http.delete(self._session)
        self._http.close()
        self._process.terminate()
        self._process.wait(10.0)
        self._process.stdout.close()
