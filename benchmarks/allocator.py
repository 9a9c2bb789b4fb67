"""Images per CPU second of an encoder, with freed memory returned to the system and kept.

    OMP_NUM_THREADS=1 python benchmarks/allocator.py [--name tf_efficientnet_lite0] [--size 64]

Each case is a process of its own, in turns; `fit`, `test`, `tune` and `mergeability` keep freed
memory. The table has the median of all rounds, page faults and the peak of resident memory.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from statistics import median

import report
import torch

from lightning_merge.core.allocator import keep_freed_memory
from lightning_merge.models import TimmEncoder


def measure(name: str, size: int, batch: int) -> dict[str, float]:
    """Return what one process measures."""
    encoder = TimmEncoder(name, image_size=size)
    images = torch.randn(batch, 3, size, size)
    found: dict[str, float] = {}
    for what, training in (("forward", False), ("forward + backward", True)):
        taken = []
        for _ in range(8):
            started = time.process_time()
            with torch.set_grad_enabled(training):
                features = encoder(images)
            if training:
                features.square().sum().backward()
            taken.append(time.process_time() - started)
        found[what] = batch / median(taken[2:])
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {**found, "page faults": used.ru_minflt, "peak MiB": used.ru_maxrss / 1024}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="tf_efficientnet_lite0", help="a model of timm")
    parser.add_argument("--size", type=int, default=64, help="side of the images")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--case", choices=["returned", "kept"], help="measure in this process")
    given = parser.parse_args(arguments)
    if given.case is not None:
        if given.case == "kept" and not keep_freed_memory():
            parser.error("the C library or the environment does not allow it")
        print(json.dumps(measure(given.name, given.size, given.batch)))
        return
    found: dict[str, list[dict[str, float]]] = {"returned": [], "kept": []}
    own = [sys.executable, __file__, *(arguments or sys.argv[1:])]
    for _ in range(given.rounds):
        for case, rounds in found.items():
            done = subprocess.run([*own, "--case", case], capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr)
            rounds.append(json.loads(done.stdout))
    print(f"* {report.machine()}; torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"* {given}\n")
    columns = [*found["kept"][0]]
    rows = [
        [case, *(f"{median(one[column] for one in rounds):.0f}" for column in columns)]
        for case, rounds in found.items()
    ]
    print(report.markdown(["freed memory", *columns], rows))


if __name__ == "__main__":
    main()
