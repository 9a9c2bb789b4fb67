"""Images per second of a convolutional encoder on contiguous and on channels-last images.

    OMP_NUM_THREADS=1 python benchmarks/memory_format.py [--name tf_efficientnet_lite0] [--size 64]
    python benchmarks/memory_format.py --device cuda --autocast bfloat16 --batch 256 --size 224

Weights and images are random. Both formats run in turns in one process, forward alone and forward
with backward; the table has the best and the median of all rounds. Seconds are those of the CPU, or
the GPU's wall time, measured until its work is done.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from statistics import median

import report
import torch

from lightning_merge.models import TimmEncoder
from lightning_merge.models.memory_format import MemoryFormat

FORMATS: tuple[MemoryFormat, ...] = ("contiguous", "channels_last")


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the CPU time of a call, which other processes change least, or a GPU's wall time."""
    if device.type == "cpu":
        started = time.process_time()
        work()
        return time.process_time() - started
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    torch.cuda.synchronize(device)
    return time.perf_counter() - started


def steps(given: argparse.Namespace) -> dict[tuple[str, str], Callable[[], object]]:
    """Return what is measured, by what it does and by format."""
    made: dict[tuple[str, str], Callable[[], object]] = {}
    images = torch.randn(given.batch, 3, given.size, given.size, device=given.device)
    dtype = None if given.autocast is None else getattr(torch, given.autocast)
    precision = torch.autocast(given.device.type, dtype, enabled=dtype is not None)
    for kind in FORMATS:
        encoder = TimmEncoder(given.name, image_size=given.size, memory_format=kind)
        encoder.train().to(given.device)

        def forward(encoder: TimmEncoder = encoder) -> None:
            with torch.inference_mode(), precision:
                encoder(images)

        def train(encoder: TimmEncoder = encoder) -> None:
            with precision:
                features = encoder(images)
            features.square().sum().backward()
            encoder.zero_grad()

        made |= {("forward", kind): forward, ("forward + backward", kind): train}
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="tf_efficientnet_lite0", help="a model of timm")
    parser.add_argument("--size", type=int, default=64, help="side of the images")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--autocast", choices=["bfloat16", "float16"], help="mixed precision")
    given = parser.parse_args(arguments)
    work = steps(given)
    for call in work.values():
        call()  # the first call of each prepares memory and kernels
    taken: dict[tuple[str, str], list[float]] = {key: [] for key in work}
    for _ in range(given.rounds):
        for key, call in work.items():
            taken[key].append(seconds(call, given.device))
    lines = []
    for what in ("forward", "forward + backward"):
        old, new = (taken[what, kind] for kind in FORMATS)
        row = [f"{given.batch / pick(t):.0f}" for t in (old, new) for pick in (min, median)]
        lines.append([what, *row, f"{min(old) / min(new):.2f}", f"{median(old) / median(new):.2f}"])
    gpu = [] if given.device.type == "cpu" else [torch.cuda.get_device_name(given.device)]
    machine = ", ".join([report.machine(), *gpu])
    print(f"* {machine}; torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"* {given}\n")
    header = [
        "images per CPU s" if given.device.type == "cpu" else "images per s",
        *(f"{kind}, {of}" for kind in FORMATS for of in ("best", "median")),
    ]
    print(report.markdown([*header, "ratio, best", "ratio, median"], lines))


if __name__ == "__main__":
    main()
