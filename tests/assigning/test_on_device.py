"""What the differential tests compare also holds on a device: a few of them, run again with ``--on-device``."""

import os
import re
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_loads_to_a_device_are_those_of_stock():
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--on-device",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        "test_shapes or test_longer_file or test_top_level_weights",
    ]
    done = subprocess.run(
        [*command, str(TESTS / "matching" / "test_keras3_by_path.py")],
        cwd=TESTS.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    copies = re.search(r"(\d+) copies to a simulated device", done.stdout)
    assert copies is not None
    assert int(copies[1]) > 5
