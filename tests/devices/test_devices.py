"""All that runs a network runs on a device that is not the CPU: cases.py, in its own process."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
RESUMED = "modules/test_stats_merging.py::test_an_interrupted_run_ends_as_an_uninterrupted_one"


@pytest.mark.skipif(
    not (shutil.which("c++") and shutil.which("ninja")),
    reason="no c++ and ninja to make a device with",
)
def test_nothing_mixes_a_device_with_the_host(tmp_path):
    paths = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "strict", "-p", "no:cacheprovider"]
    tests = [str(HERE / "cases.py"), str(HERE.parent / RESUMED)]
    done = subprocess.run(
        [*command, "--basetemp", str(tmp_path / "run"), *tests],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
