"""Time and memory of one step of coefficient learning, next to its lower bounds.

    python benchmarks/coefficient_step.py [--device cuda] [--precision bf16-mixed] [--offload]

Task vectors and images are random, in the shapes of CLIP ViT-B/32, with eight tasks of 16 images
each. Steps are timed in turns in one process; memory is measured in a process of its own for each.
README.md explains the columns.
"""

import argparse
import gc
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import report
import torch
from checkpoints import Tower
from m_ties import network
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from lightning_merge.core.vectors.coefficients import StackedTaskVectors
from lightning_merge.core.vectors.task_vectors import TaskVectors

CLASSES = 100
PLAIN, MERGE, OURS = "forward + backward, one network", "one merge", "ours"
SUM, TASK_BY_TASK = "Python sum", "Python sum, one backward per task"
ONE = "forward + backward, images of one task"


@dataclass(frozen=True)
class Setting:
    """Sizes of the measurement, and the device it runs on."""

    tasks: int
    images: int
    width: int
    depth: int
    patch: int
    device: str
    precision: str
    offload: bool

    @property
    def tower(self) -> Tower:
        """The layout of the network."""
        return Tower(width=self.width, layers=self.depth, patch=self.patch, image=224, embed=512)

    @property
    def entries(self) -> int:
        """The number of weights of one network."""
        return sum(torch.Size(shape).numel() for shape in self.tower.layout().values())

    @property
    def steps(self) -> tuple[str, ...]:
        """The ways to take a gradient; only ours supports offloaded task vectors."""
        return (OURS,) if self.offload else (OURS, SUM, TASK_BY_TASK)

    def weights(self) -> dict[str, Tensor]:
        """Return random weights in the shapes of the tower, with normalisation gains of 1."""
        torch.manual_seed(0)
        shapes = self.tower.layout()
        gains = {name for name in shapes if ".ln_" in f".{name}" and name.endswith("weight")}
        return {n: torch.randn(s).mul_(0.02).add_(n in gains) for n, s in shapes.items()}

    def network(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """Return the tower with these weights, on the device."""
        return network(self.tower, weights).to(self.device)  # type: ignore[arg-type]

    def pictures(self) -> Tensor:
        """Return random images of every task, [tasks, images, 3, side, side]."""
        side = self.tower.image
        return torch.randn(self.tasks, self.images, 3, side, side, device=self.device)

    def entropy(self, net: Callable[[Tensor], Tensor], images: Tensor, head: Tensor) -> Tensor:
        """Return AdaMerging's loss: the mean entropy of a head's predictions on images."""
        half = self.precision == "bf16-mixed"
        with torch.autocast(self.device, torch.bfloat16, enabled=half):
            logits = net(images.flatten(0, -4)) @ head
        log = logits.float().log_softmax(1)
        return -(log.exp() * log).sum(1).mean()


@dataclass(frozen=True)
class Rolled(Mapping[str, Tensor]):
    """An expert computed when read: the base, plus a tenth of it shifted by some places."""

    base: dict[str, Tensor]
    places: int

    def __getitem__(self, name: str) -> Tensor:
        return self.base[name] + 0.1 * self.base[name].roll(self.places)

    def __iter__(self) -> Iterator[str]:
        return iter(self.base)

    def __len__(self) -> int:
        return len(self.base)


class Plain:
    """Forward and backward of all images through one network, for the gradient of its weights."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.images = setting, setting.pictures()
        self.network = setting.network(setting.weights())
        self.head = torch.randn(setting.tower.embed, CLASSES, device=setting.device)

    def run(self, keep: bool = False) -> None:
        """Take the gradient; with `keep`, that of the last run stays in memory meanwhile."""
        self.network.zero_grad(set_to_none=not keep)
        self.setting.entropy(self.network, self.images, self.head).backward()


class Learning:
    """Coefficients of stacked task vectors, and the ways to take their gradient."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.images = setting, setting.pictures()
        base = setting.weights()
        self.network = setting.network(base).requires_grad_(False)
        experts = {f"task{k}": Rolled(base, k + 1) for k in range(setting.tasks)}
        vectors = TaskVectors(base, experts)
        self.stacked = StackedTaskVectors(vectors, setting.device, offload=setting.offload)
        self.stacked.share(dict(self.network.named_parameters()))
        self.head = torch.randn(setting.tower.embed, CLASSES, device=setting.device)
        shape = (setting.tasks, len(self.stacked.names))
        self.values = torch.full(shape, 0.3, device=setting.device, requires_grad=True)

    def of(self, weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
        """Return the loss of a merged network."""
        call = partial(functional_call, self.network, dict(weights))
        return self.setting.entropy(call, images, self.head)

    @torch.no_grad()
    def merge(self) -> None:
        """Merge once, without a gradient."""
        self.stacked.merge(self.values)

    def ours(self) -> None:
        """Take the step of this project."""
        self.stacked.loss(self.values, partial(self.of, images=self.images)).backward()

    def summed(self) -> dict[str, Tensor]:
        """Return theta_0 + sum_k c_kl tau_kl, written naively with a graph over the experts."""
        merged = {}
        for layer, (name, base) in enumerate(self.stacked.base.items()):
            vectors = self.stacked.stacks[name].view(-1, *base.shape)
            merged[name] = base + sum(
                self.values[k, layer] * vector for k, vector in enumerate(vectors)
            )
        return merged

    def python_sum(self) -> None:
        """Take the naive sum, and one backward pass over the images of all tasks."""
        self.of(self.summed(), self.images).backward()

    def task_by_task(self) -> None:
        """Take the naive sum, and a forward and backward pass through it for each task."""
        merged, tasks = self.summed(), len(self.images)
        for left, images in zip(reversed(range(tasks)), self.images, strict=True):
            (self.of(merged, images) / tasks).backward(retain_graph=left > 0)

    def run(self, step: str) -> Tensor:
        """Return the gradient [K, L] of one step."""
        self.values.grad = None
        {OURS: self.ours, SUM: self.python_sum, TASK_BY_TASK: self.task_by_task}[step]()
        assert self.values.grad is not None
        return self.values.grad


# Time


def wait(device: str) -> None:
    """Wait until a GPU has finished its queued work."""
    if device == "cuda":
        torch.cuda.synchronize()


def stopwatch(device: str, work: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    wait(device)
    started = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - started


def measure_times(setting: Setting, repeat: int) -> tuple[dict[str, list[float]], int]:
    """Return seconds of each step, run in turns after a warm-up, and FLOPs of a plain step."""
    plain, learning = Plain(setting), Learning(setting)
    works: dict[str, Callable[[], object]] = {PLAIN: plain.run, MERGE: learning.merge}
    works |= {step: partial(learning.run, step) for step in setting.steps}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeat + 1):
        for name, work in works.items():
            seconds[name].append(stopwatch(setting.device, work))
    with FlopCounterMode(display=False) as counter:
        plain.run()
    check_agreement(learning)
    return {name: found[1:] for name, found in seconds.items()}, counter.get_total_flops()


def check_agreement(learning: Learning) -> None:
    """Check that all steps give the same gradient, to the precision of the run."""
    ours, *others = (learning.run(step) for step in learning.setting.steps)
    most = 0.1 if learning.setting.precision == "bf16-mixed" else 1e-3
    for other in others:
        apart = ((other - ours).norm() / ours.norm()).item()
        assert apart < most, f"gradients differ by {apart:.1e} of their norm"


# Memory


def in_use(peak: bool) -> int:
    """Return the bytes in use now, or the peak since it was last reset."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    key = "VmHWM:" if peak else "VmRSS:"
    return 1024 * int(Path("/proc/self/status").read_text().split(key)[1].split()[0])


def forget_peak() -> None:
    """Reset the peak memory."""
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM


def take_steps(setting: Setting, name: str) -> int:
    """Return the peak bytes of two steps, including everything that they work on."""
    run = (
        partial(Plain(setting).run, keep=True)
        if name == PLAIN
        else partial(Learning(setting).run, name)
    )
    gc.collect()
    forget_peak()
    for _ in range(2):
        run()
    wait(setting.device)
    return in_use(peak=True)


def peak_above_imports(setting: Setting, name: str) -> int:
    """Return the peak bytes of a step, less those of a process that has taken a tiny one."""
    take_steps(replace(setting, tasks=2, images=1, width=64, depth=1), name)
    gc.collect()
    before = in_use(peak=False)
    return take_steps(setting, name) - before


def measure_memory(setting: Setting) -> dict[str, float]:
    """Return memory in models: activations of a plain step, and what each other step adds.

    A plain step holds its weights, their gradients, and activations. The other steps hold the
    stacked task vectors and the same activations (those of one task, if they go task by task);
    whatever they hold beyond that is returned.
    """
    # Large tensors are returned to the system when freed, so that the peak counts live ones only.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**16)
    context = multiprocessing.get_context("spawn")
    one_task = replace(setting, tasks=1)
    runs = {name: (setting, name) for name in (PLAIN, *setting.steps)} | {ONE: (one_task, PLAIN)}
    found = {}
    for name, arguments in runs.items():
        with context.Pool(1) as pool:
            found[name] = pool.apply(peak_above_imports, arguments) / (4 * setting.entries)
    stacks = 0 if setting.offload and setting.device == "cuda" else setting.tasks
    activations = {name: found[ONE if name == TASK_BY_TASK else PLAIN] - 2 for name in found}
    above = {name: found[name] - stacks - activations[name] for name in setting.steps}
    return {PLAIN: activations[PLAIN], **above}


# Floors


def floors(setting: Setting, operations: int) -> list[tuple[str, str, float]]:
    """Return the lower bounds of a step: name, amount, and seconds at the speed measured here."""
    device, half = setting.device, setting.precision == "bf16-mixed"
    square = torch.randn(2048, 2048, device=device, dtype=torch.bfloat16 if half else None)
    block = torch.randn(2**26, device="cpu" if setting.offload else device)
    if setting.offload and device == "cuda":
        block = block.pin_memory()

    def best(work: Callable[[], object]) -> float:
        return min(stopwatch(device, work) for _ in range(5))

    speed = 2 * 2048**3 / best(lambda: square @ square)
    move = partial(block.to, device) if block.device.type != device else block.sum
    width = block.nbytes / best(move)
    stacks = 2 * 4 * setting.tasks * setting.entries
    return [
        (f"{PLAIN}: multiplications at {speed / 1e9:.0f} GFLOP/s",
         f"{operations / 1e9:.0f} GFLOP", operations / speed),
        (f"read the stacks twice at {width / 1e9:.1f} GB/s", f"{stacks / 1e9:.2f} GB",
         stacks / width),
    ]  # fmt: skip


def tables(
    seconds: Mapping[str, list[float]],
    memory: Mapping[str, float],
    least: list[tuple[str, str, float]],
) -> str:
    """Return the measurements and the lower bounds in Markdown."""
    middle = {name: median(found) for name, found in seconds.items()}
    whole = middle[PLAIN] + middle[MERGE]
    lines = [
        [name, f"{min(found):.3f}, {middle[name]:.3f}", f"{middle[name] / whole:.3f}",
         "" if name in (PLAIN, MERGE) else f"{memory[name]:.2f}"]
        for name, found in seconds.items()
    ]  # fmt: skip
    lines.insert(2, ["the two together", f"{whole:.3f}", "1", ""])
    header = ["step", "s: best, median", "x (plain + merge)", "models above stacks, activations"]
    amounts = [[name, amount, f"{spent:.3f}"] for name, amount, spent in least]
    total = sum(spent for *_, spent in least)
    amounts.append(["both", "", f"{total:.3f}; ours {middle[OURS] / total:.2f} times that"])
    return "\n\n".join(
        [report.markdown(header, lines), report.markdown(["floor", "amount", "s"], amounts)]
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--images", type=int, default=16, help="of each task")
    parser.add_argument("--width", type=int, default=768, help="a multiple of 64")
    parser.add_argument("--depth", type=int, default=12, help="number of blocks")
    parser.add_argument("--patch", type=int, default=32, help="side in pixels, of 224")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="32-true")
    parser.add_argument("--offload", action="store_true", help="task vectors in host memory")
    parser.add_argument("--repeat", type=int, default=5, help="timed runs of each step")
    options = vars(parser.parse_args())
    repeat = options.pop("repeat")
    setting = Setting(**options)
    memory = measure_memory(setting)
    seconds, operations = measure_times(setting, repeat)
    on = torch.cuda.get_device_name() if setting.device == "cuda" else report.machine()
    print(f"* {on}; torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"* {setting}; activations of all images: {memory[PLAIN]:.2f} models")
    print(f"* {repeat} runs of each, in turns\n")
    print(tables(seconds, memory, floors(setting, operations)))


if __name__ == "__main__":
    main()
