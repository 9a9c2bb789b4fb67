"""Time and memory until the images of tasks are decoded: no cache, a cold one, and a warm one.

    OMP_NUM_THREADS=1 python benchmarks/image_cache.py --data-root DATA --tasks cars resisc45

Each case runs in a process of its own. The table has the seconds of CPU (elapsed) of `load` and of
`prepare`, and the peak of resident memory beyond what the process held before; all cases have to
find the same pixels.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import report

from lightning_merge.data.datamodule import MergeDataModule
from lightning_merge.models.image_preprocess import ImagePreprocess

PARTS = ("train", "validation", "test")


def peak() -> int:
    """Return the peak of resident memory in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds of CPU and the elapsed seconds of a call."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def case(given: argparse.Namespace) -> dict[str, object]:
    """Load and decode all images; return what it took, and the sum of their pixels."""
    data = MergeDataModule(given.data_root, tasks=given.tasks, image_cache=given.folder)
    data.preprocess = ImagePreprocess(size=given.size, mean=(0.5,) * 3, std=(0.5,) * 3)
    before = peak()
    load = timed(data.load)
    images = [data.inputs(task, part) for task in given.tasks for part in PARTS]
    prepare = timed(lambda: [part.prepare() for part in images])
    grown = peak() - before
    batches = (batch for part in images for batch in part.batches(256, "sum of pixels"))
    pixels = sum(int(batch.inputs.long().sum()) for batch in batches)
    count = sum(map(len, images))
    return {"load": load, "prepare": prepare, "memory": grown, "pixels": pixels, "images": count}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--data-root", required=True, help="folder of <task>/{train,test}/<class>/<image>")
    add("--tasks", nargs="+", required=True)
    add("--sizes", type=int, nargs="+", default=[64, 224], help="sides of the images")
    add("--size", type=int, help=argparse.SUPPRESS)
    add("--folder", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.size is not None:
        print(json.dumps(case(given)))
        return
    rows, same = [], set()
    own = [sys.executable, __file__, "--data-root", given.data_root, "--tasks", *given.tasks]
    for size in given.sizes:
        with tempfile.TemporaryDirectory() as folder:
            for name, place in {"no cache": "none", "cold": folder, "warm": folder}.items():
                words = [*own, "--size", str(size), "--folder", place]
                found = json.loads(subprocess.check_output(words, text=True).split("\n")[-2])
                same.add((size, found["images"], found["pixels"]))
                pairs = (found["load"], found["prepare"])
                times = [f"{cpu:.2f} ({wall:.2f})" for cpu, wall in pairs]
                rows.append([f"{size} px", name, *times, f"{found['memory'] / 1024:.0f} MiB"])
    assert len(same) == len(given.sizes), "the cases found different pixels"
    print(f"* {report.machine()}\n* {given.tasks}, {found['images']} images\n")
    print(report.markdown(["input", "", "load", "prepare", "memory"], rows))


if __name__ == "__main__":
    main()
