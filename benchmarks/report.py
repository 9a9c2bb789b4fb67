"""The tables of the benchmark."""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from agreement import Agreement
from measure import MIB, Run


@dataclass
class Row:
    """All runs of one tool with one method.

    Attributes:
        method: Label of the method.
        tool: Label of the tool.
        runs: One run per repetition; there are none after a failure.
    """

    method: str
    tool: str
    runs: list[Run] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether the tool failed."""
        return any(run.code for run in self.runs)

    @property
    def wall(self) -> float:
        """Median seconds."""
        return median(run.wall for run in self.runs)

    @property
    def rss(self) -> int:
        """Largest peak of resident bytes."""
        return max(run.rss for run in self.runs)

    @property
    def anonymous(self) -> int:
        """Largest peak of anonymous bytes."""
        return max(run.anonymous for run in self.runs)


@dataclass
class Floors:
    """Seconds to move the bytes, by number of threads, with one entry per repetition."""

    read: dict[int, list[float]] = field(default_factory=dict)
    write: list[float] = field(default_factory=list)
    flush: list[float] = field(default_factory=list)

    def seconds(self, passes: int, threads: int) -> float:
        """Return the seconds to read the inputs `passes` times and write the output, unsynced."""
        return passes * median(self.read[threads]) + median(self.write)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with each column padded to one width."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    text = [
        " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in lines
    ]
    rule = " | ".join("-" * width for width in widths)
    return "\n".join(f"| {line} |" for line in (text[0], rule, *text[1:]))


HEADER = [
    "method",
    "tool",
    "wall s: best, median",
    "CPU s",
    "x ours",
    "x bytes",
    "x (start + bytes)",
    "peak RSS MiB",
    "peak anonymous MiB",
]


def cells(row: Row, ours: Row, start: Row, floor: float) -> list[str]:
    """Return one row of the main table.

    Args:
        row: The measurements.
        ours: Row whose time the others are compared with.
        start: Run of the same tool on a tiny checkpoint.
        floor: Seconds to move the bytes of this method.
    """
    above = (row.anonymous - start.anonymous) / MIB
    memory = f"{row.anonymous / MIB:.0f}" + f" = imports + {round(above)}" * (row is not start)
    end = [f"{row.rss / MIB:.0f}", memory]
    if row.failed:
        return [row.method, row.tool, f"failed: code {row.runs[-1].code}", *[""] * 4, *end]
    best, cpu = min(run.wall for run in row.runs), median(run.cpu for run in row.runs)
    relative = "" if ours.failed else f"{row.wall / ours.wall:.2f}"
    excess = [f"{row.wall / floor:.2f}", f"{row.wall / (start.wall + floor):.2f}"]
    times = [f"{best:.2f}, {row.wall:.2f}", f"{cpu:.1f}", relative]
    times += ["", ""] if row is start else excess
    return [row.method, row.tool, *times, *end]


def floor_table(floors: Floors, read: int, written: int) -> str:
    """Return the table of times to move the bytes.

    Args:
        floors: Measured seconds.
        read: Size of all inputs in bytes.
        written: Size of one output in bytes.
    """
    lines = [
        (f"read every input once, {n} thread{'s' * (n > 1)}", seconds, read)
        for n, seconds in sorted(floors.read.items())
    ]
    lines += [("write the output", floors.write, written), ("fsync it", floors.flush, written)]
    return markdown(
        ["floor", "s: best, median", "GB/s"],
        [
            [name, f"{min(s):.2f}, {median(s):.2f}", f"{size / 1e9 / max(median(s), 1e-9):.2f}"]
            for name, s, size in lines
        ],
    )


def agreement_line(method: str, tool: str, found: Agreement, random: bool) -> list[str]:
    """Return one row of the table of agreement with our first row."""
    if random:
        return [method, tool, "random", "random", f"{found.update:.4f}"]
    apart = f"{found.apart} of {found.entries}"
    return [method, tool, f"{found.largest:.1e}", apart, f"{found.update:.4f}"]


AGREEMENT_HEADER = [
    "method",
    "compared with ours",
    "max difference",
    "entries apart > 1e-6",
    "RMS of update / ours",
]


def machine() -> str:
    """Return the processor, cores and memory in words."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().split("\n")
        if line.startswith("model name")
    ]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    model = models[0] if models else platform.machine()
    return f"{model}, {cores} cores, {memory:.0f} GiB, Linux {platform.release()}"
