"""Measure how time and memory of merging, learning and evaluation grow, on short cases.

    OMP_NUM_THREADS=1 python benchmarks/scale.py

Every case runs in its own process. Time is CPU time, so that other work on the machine does not
count; memory is the peak not backed by files (RssAnon), less that before the case.
"""

import multiprocessing
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from lightning_merge.core.checkpoints.checkpoint import open_checkpoint, save_checkpoint
from lightning_merge.core.checkpoints.writer import CheckpointWriter
from lightning_merge.core.vectors.coefficients import StackedTaskVectors
from lightning_merge.core.vectors.task_vectors import TaskVectors
from lightning_merge.methods import MTies, TaskArithmetic, Ties
from lightning_merge.methods.base import MergeMethod, Resources
from lightning_merge.models import MiniViT

REPEATS = 5
MIB = 2**20


@dataclass(frozen=True)
class Case:
    """The parameters of one measurement."""

    experts: int = 4
    depth: int = 6
    images: int = 32

    @property
    def parameters(self) -> int:
        """Return the number of entries of one network."""
        return sum(p.numel() for p in MiniViT(depth=self.depth).parameters())

    def write(self, folder: Path) -> None:
        """Write a base and experts around it."""
        torch.manual_seed(0)
        base = MiniViT(depth=self.depth).backbone.state_dict()
        save_checkpoint(base, folder / "base.safetensors")
        for i in range(self.experts):
            expert = {n: t + 0.01 * torch.randn_like(t) for n, t in base.items()}
            save_checkpoint(expert, folder / f"{i}.safetensors")

    def open(self, folder: Path):
        """Return a network, the base and the experts, without reading any tensor yet."""
        experts = {
            str(i): open_checkpoint(folder / f"{i}.safetensors") for i in range(self.experts)
        }
        return MiniViT(depth=self.depth), open_checkpoint(folder / "base.safetensors"), experts


@dataclass(frozen=True)
class Measured:
    """CPU seconds and peak bytes of a case."""

    seconds: float
    memory: float


def anonymous() -> int:
    """Return the bytes of this process not backed by files."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


@contextmanager
def peak() -> Iterator[list[int]]:
    """Yield a list whose last number is the peak anonymous memory above the current level."""
    start, found, done = anonymous(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            found.append(max(found[-1], anonymous() - start))

    thread = threading.Thread(target=watch)
    thread.start()
    yield found
    done.set()
    thread.join()


def fastest(work: Callable[[], object]) -> float:
    """Return the CPU seconds of the fastest of some repeats."""
    spent = []
    for _ in range(REPEATS):
        started = time.process_time()
        work()
        spent.append(time.process_time() - started)
    return min(spent)


def learn(case: Case, folder: Path) -> Measured:
    """Measure one step of coefficient learning: merge, forward, backward."""
    network, base, experts = case.open(folder)
    images = torch.randn(case.images, 3, 32, 32)
    with peak() as memory:
        stacked = StackedTaskVectors(TaskVectors(base, experts))
        values = torch.full((case.experts, len(stacked.names)), 0.3, requires_grad=True)

        def step() -> None:
            stacked.loss(
                values, lambda weights: network.functional(weights, images).square().mean()
            ).backward()

        seconds = fastest(step)
    return Measured(seconds, memory[-1])


def merge(method: MergeMethod, case: Case, folder: Path) -> Measured:
    """Measure a tensor-wise method from files to a file."""
    _, base, experts = case.open(folder)
    layout = TaskVectors(base, experts).stored.layout()

    def run() -> None:
        with CheckpointWriter(folder / "merged.safetensors", layout) as sink:
            method.merge_to(sink, base, experts, Resources())

    with peak() as memory:
        seconds = fastest(run)
    return Measured(seconds, memory[-1])


def m_ties(case: Case, folder: Path) -> Measured:
    """Measure M-TIES from files to weights in memory."""
    network, base, experts = case.open(folder)
    images = torch.randn(case.images, 3, 32, 32)
    with peak() as memory:
        seconds = fastest(lambda: MTies()(base, experts, model=network.backbone, batches=images))
    return Measured(seconds, memory[-1])


@torch.no_grad()
def evaluate(case: Case, folder: Path) -> Measured:
    """Measure a forward pass of one network over images, 256 at a time."""
    network, *_ = case.open(folder)
    images = torch.randn(case.images, 3, 32, 32)
    with peak() as memory:
        seconds = fastest(lambda: [network(batch) for batch in images.split(256)])
    return Measured(seconds, memory[-1])


ties = partial(merge, Ties())
ties.__name__ = "ties"  # type: ignore[attr-defined]
arithmetic = partial(merge, TaskArithmetic())
arithmetic.__name__ = "task arithmetic"  # type: ignore[attr-defined]

SWEEPS = {
    arithmetic: {"experts": (2, 4, 8), "depth": (4, 8, 16)},
    ties: {"experts": (2, 4, 8), "depth": (4, 8, 16)},
    learn: {"experts": (2, 4, 8), "depth": (4, 8, 16), "images": (16, 64, 128)},
    m_ties: {"experts": (2, 4, 8), "depth": (4, 8, 16), "images": (16, 64, 128)},
    evaluate: {"depth": (4, 8, 16), "images": (256, 512, 1024)},
}
DEFAULTS = {evaluate: Case(images=512)}


def apart(work: Callable[[Case, Path], Measured], case: Case) -> Measured:
    """Measure a case in a new process."""
    with tempfile.TemporaryDirectory() as folder:
        case.write(Path(folder))
        context = multiprocessing.get_context("spawn")
        with context.Pool(1) as pool:
            return pool.apply(partial(work, case, Path(folder)))


def main() -> None:
    """Print a row per sweep: the values, the measurements, and the slopes of a straight line."""
    print("| what | grows | values | CPU s | MiB | s per unit | MiB per unit |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for work, sweeps in SWEEPS.items():
        for name, values in sweeps.items():
            cases = [replace(DEFAULTS.get(work, Case()), **{name: value}) for value in values]
            if name == "depth":
                name, values = "million parameters", [c.parameters / 1e6 for c in cases]
            found = [apart(work, case) for case in cases]
            seconds = [one.seconds for one in found]
            memory = [one.memory / MIB for one in found]
            slopes = [np.polyfit(values, numbers, 1)[0] for numbers in (seconds, memory)]
            columns = [
                ", ".join(f"{value:.4g}" for value in numbers)
                for numbers in (values, seconds, memory, slopes[:1], slopes[1:])
            ]
            print("|", " | ".join([work.__name__, name, *columns]), "|", flush=True)


if __name__ == "__main__":
    main()
