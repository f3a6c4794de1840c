"""Exit status 0 when the gateway of this container says that the pipeline is healthy.

EDGE_PERCEPTION_HEALTH_URL names another address than that of a gateway with default parameters.
The token is that of the gateway: EDGE_PERCEPTION_TOKEN, or the first line of the file that
EDGE_PERCEPTION_TOKEN_FILE names. Only the standard library is used: it runs every few seconds.
"""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

URL = 'http://127.0.0.1:8000/health'
TIMEOUT_S = 4.0
SHOWN_CHARACTERS = 500


def main() -> int:
    """Ask once, and print what the gateway answers."""
    token = os.environ.get('EDGE_PERCEPTION_TOKEN', '')
    if path := os.environ.get('EDGE_PERCEPTION_TOKEN_FILE'):
        token = Path(path).read_text(encoding='utf-8').strip()
    request = urllib.request.Request(os.environ.get('EDGE_PERCEPTION_HEALTH_URL') or URL)
    if token:
        request.add_header('Authorization', f'Bearer {token}')
    # A proxy in the environment is for the way out, not for this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=TIMEOUT_S) as answer:
            print(answer.read(SHOWN_CHARACTERS).decode())
        return 0
    except urllib.error.HTTPError as error:
        print(error, error.read(SHOWN_CHARACTERS).decode())
    except OSError as error:
        print(error)
    return 1


if __name__ == '__main__':
    sys.exit(main())
