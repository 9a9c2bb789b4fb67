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
        runs: One per repetition, none after a failure.
    """

    method: str
    tool: str
    runs: list[Run] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether the tool did not come to an end."""
        return any(run.code for run in self.runs)

    @property
    def wall(self) -> float:
        """Median seconds."""
        return median(run.wall for run in self.runs)

    @property
    def rss(self) -> int:
        """Greatest peak of resident bytes."""
        return max(run.rss for run in self.runs)

    @property
    def anonymous(self) -> int:
        """Greatest peak of anonymous bytes."""
        return max(run.anonymous for run in self.runs)


@dataclass
class Floors:
    """Seconds that moving the bytes takes, by number of threads; one entry per repetition."""

    read: dict[int, list[float]] = field(default_factory=dict)
    write: list[float] = field(default_factory=list)
    flush: list[float] = field(default_factory=list)

    def seconds(self, passes: int, threads: int) -> float:
        """Reading the inputs so many times and writing the output; not forcing it to the disk."""
        return passes * median(self.read[threads]) + median(self.write)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, its columns padded to one width."""
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
    """One line of the main table.

    Args:
        row: What was measured.
        ours: The row whose time the others are compared with.
        start: The same tool merging next to nothing.
        floor: Seconds that moving the bytes of this method takes.
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
    """What moving the bytes takes.

    Args:
        floors: Measured seconds.
        read: Bytes of all inputs.
        written: Bytes of one output.
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
    """One line of the table of agreement with our first row."""
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
    """Processor, cores and memory."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().split("\n")
        if line.startswith("model name")
    ]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    model = models[0] if models else platform.machine()
    return f"{model}, {cores} cores, {memory:.0f} GiB, Linux {platform.release()}"
