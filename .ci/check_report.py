"""Judge a JUnit report: tests ran, and each skip is for a reason that an installation cannot mend.

python3 .ci/check_report.py out/ci/junit.xml
"""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ElementTree

# How the reasons begin. All else that is missing, `make setup-training` should have brought.
ALLOWED_SKIPS = (
    'reference data',  # lies outside the project
    'ROS installation',  # the wheels have no launch, launch_pytest, ros2cli
    'launch_pytest is not installed',  # part of one
    'cv_bridge',  # part of a ROS installation, not on PyPI
    'GPU',
    'another middleware',  # chosen by RMW_IMPLEMENTATION
    'chromium is not installed',  # a system package, for the live page only
    'prometheus is not installed',  # likewise, for the monitoring only
    'another filesystem',  # mounting one takes root
    'another processor',  # a checking program has no wheel for it
    'podman is not installed',  # a system package, for the container image only
    'mmdebstrap is not installed',  # likewise, where no base image can be had
    'image: building takes minutes',  # done on request: CONTRIBUTING.md
    'machines of a network need',  # root, /dev/net/tun or iproute2
)


def main() -> int:
    """Print what is wrong; the exit status is 1 when something is."""
    cases = list(ElementTree.parse(sys.argv[1]).getroot().iter('testcase'))
    refused = []
    skipped = 0
    for case in cases:
        skip = case.find('skipped')
        if skip is None or skip.get('type') == 'pytest.xfail':
            continue
        skipped += 1
        reason = skip.get('message', '')
        # A skipped module is reported as ('path', line, 'Skipped: reason').
        if module := re.search(r', .Skipped: (.*).\)$', skip.text or ''):
            reason = module[1]
        if not reason.startswith(ALLOWED_SKIPS):
            refused.append(f'{case.get("classname")}.{case.get("name")}: {reason}')
    for line in refused:
        print(f'ci: skipped without an allowed reason: {line}', file=sys.stderr)
    if skipped == len(cases):
        print(f'ci: no test ran ({skipped} skipped)', file=sys.stderr)
    return 1 if refused or skipped == len(cases) else 0


if __name__ == '__main__':
    sys.exit(main())
