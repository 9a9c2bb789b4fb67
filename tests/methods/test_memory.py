"""Merging out of core takes the same memory, whatever the size of the model."""

import subprocess
import sys

import pytest
import torch

from lightning_merge.core.checkpoints.checkpoint import save_checkpoint

SIZE = 2**24  # entries of the largest tensor: 64 MiB of each expert, 256 MiB of a stack
BOUND = 150  # MiB of memory that no file backs, above what importing and a tiny merge take

SCRIPT = """
import sys, threading, time
from pathlib import Path
from lightning_merge.core.checkpoints.checkpoint import open_checkpoint
from lightning_merge.core.checkpoints.writer import CheckpointWriter
from lightning_merge.methods import *

def anonymous():
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) // 1024

def merge(folder):
    base = open_checkpoint(folder / "base.safetensors")
    experts = {str(k): open_checkpoint(folder / f"{k}.safetensors") for k in range(4)}
    layout = {name: (base.dtype(name), base.shape(name)) for name in base}
    with CheckpointWriter(folder / "merged.safetensors", layout) as sink:
        eval(sys.argv[3]).merge_to(sink, base, experts, Resources(), jobs=2)

def watch():
    while not done:
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.002)

merge(Path(sys.argv[1]))
done, start, peak = [], anonymous(), [0]
thread = threading.Thread(target=watch)
thread.start()
merge(Path(sys.argv[2]))
done.append(True)
thread.join()
print(peak[0] - start)
"""


@pytest.fixture(scope="module")
def zoos(tmp_path_factory):
    folders = []
    for size in (64, SIZE):
        folder = tmp_path_factory.mktemp("zoo")
        generator = torch.Generator().manual_seed(0)
        base = torch.randn(size // 64, 64, generator=generator)
        save_checkpoint({"w": base}, folder / "base.safetensors")
        for k in range(4):
            noise = torch.randn(base.shape, generator=generator) * 0.01
            save_checkpoint({"w": base + noise}, folder / f"{k}.safetensors")
        folders.append(folder)
    return folders


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "method",
    [
        "Average()",
        "Ties()",
        "Ties(trim='per_tensor')",
        "TaskArithmetic(transforms=[LwPTV(prune_ratio=0.0, score='magnitude'), Dare()])",
    ],
)
def test_memory_is_bounded(method, zoos):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, zoos), method], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < BOUND
