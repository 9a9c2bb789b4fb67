"""What becomes of freed memory, seen in the pages that a process has to ask for anew."""

import subprocess
import sys

import pytest

from lightning_merge.core.allocator import keep_freed_memory

FAULTS = """
import resource
from lightning_merge.core.allocator import keep_freed_memory
{}
content = bytes(2**22)
def work():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        a, b = bytearray(content), bytearray(content)  # 4 MiB each
        del a, b
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
work()
print(work())
"""


def faults(setting, **environment):
    """Pages asked for by a process that makes and frees memory, after a first round."""
    code = [sys.executable, "-c", FAULTS.format(setting)]
    done = subprocess.run(code, env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_freed_memory_is_used_again():
    if not keep_freed_memory():
        pytest.skip("not glibc, or the environment has settings of its own")
    assert faults("keep_freed_memory()") < 1000
    assert faults("", MALLOC_TRIM_THRESHOLD_="0", MALLOC_MMAP_THRESHOLD_="131072") > 50_000


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"])
def test_the_users_own_settings_stay(monkeypatch, name):
    monkeypatch.setenv(name, "131072")
    monkeypatch.setattr("ctypes.CDLL", None)  # not even asked for
    assert not keep_freed_memory()


@pytest.mark.parametrize("error", [OSError, TypeError, AttributeError])
def test_other_c_libraries_are_no_error(monkeypatch, error):
    def load(name):
        raise error("another system")

    monkeypatch.setattr("ctypes.CDLL", load)
    assert not keep_freed_memory()
