"""Cost of merging at ten scales against one: the update is formed once.

    python benchmarks/scales.py --folder CHECKPOINTS [--method TSVM] [--tower vit_b32]

Random experts in the layout of a CLIP tower, as benchmarks/checkpoints.py writes them. Seconds are
of this process's CPU, with one thread, which other work on the machine hardly changes.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from checkpoints import TOWERS, make_checkpoints

from lightning_merge.core.checkpoints.checkpoint import open_checkpoint
from lightning_merge.methods import MergeMethod, Resources, registered
from lightning_merge.methods.linear import Directions


def measure(method: Any, base: Any, experts: Any, scales: int = 10) -> tuple[float, float]:
    """Return the seconds of one merge, and of merges at several scales.

    Args:
        method: A method that is linear in its scale.
        base: Weights by name.
        experts: Task to weights.
        scales: Number of scales.
    """
    resources = Resources(scope="changed")
    started = time.process_time()
    want = replace(method, scale=0.1).merge(base, experts, resources)
    one = time.process_time() - started
    started = time.process_time()
    kept = Directions(method, base, experts, resources)
    for number in range(1, scales + 1):
        merged = kept.at(number / 10)
        if number == 1:
            assert all(torch.equal(merged[name], tensor) for name, tensor in want.items())
    return one, time.process_time() - started


def main() -> None:
    """Print one line with both figures and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--method", default="Ties")
    parser.add_argument("--tower", choices=TOWERS, default="vit_b32")
    parser.add_argument("--experts", type=int, default=8)
    given = parser.parse_args()
    torch.set_num_threads(1)
    files = make_checkpoints(given.folder, TOWERS[given.tower], given.experts)
    base = open_checkpoint(files.base)
    experts = {task: open_checkpoint(file) for task, file in files.experts.items()}
    one, ten = measure(registered(MergeMethod)[given.method](), base, experts)
    print(
        f"{given.method}, {given.experts} experts of {given.tower}: one merge {one:.2f} s, "
        f"ten scales {ten:.2f} s, ratio {ten / one:.2f}"
    )


if __name__ == "__main__":
    main()
