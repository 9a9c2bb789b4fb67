"""Run every tool with every method in turns, and record the costs."""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import measure
import report
from agreement import compare
from checkpoints import Checkpoints
from contenders import METHODS, ROOT, LightningMerge, Method, Tool

START = "start: average of a tiny tower"


@dataclass
class Session:
    """The runs of one call.

    Attributes:
        work: Folder for outputs.
        inputs: Checkpoints to merge.
        tiny: A checkpoint so small that merging it costs little more than starting.
        tools: Tools to compare, ours first; outputs are compared with the first one's.
        methods: Merges to run with each tool.
        cold: Drop the inputs from the page cache before each run, instead of reading them.
    """

    work: Path
    inputs: Checkpoints
    tiny: Checkpoints
    tools: Sequence[Tool]
    methods: Sequence[Method]
    cold: bool = False
    rows: dict[tuple[str, str], report.Row] = field(default_factory=dict)
    agreements: list[list[str]] = field(default_factory=list)
    floors: report.Floors = field(default_factory=report.Floors)
    cached: list[float] = field(default_factory=list)

    def round(self) -> None:
        """Measure once the floors, every tool's start, and every tool with every method."""
        self._measure_floors()
        for tool in self.tools:
            self._time(METHODS["average"], tool, self.tiny, START)
        for method in self.methods:
            for tool in filter(lambda tool: tool.offers(method), self.tools):
                self._prepare()
                self.cached.append(measure.cached_fraction(self.inputs.files))
                self._time(method, tool, self.inputs, method.label)
                self._compare(method, tool)
            shutil.rmtree(self.work / "out")

    def _measure_floors(self) -> None:
        for threads in {1, *(tool.threads for tool in self.tools)}:
            self._prepare()
            seconds = measure.read_seconds(self.inputs.files, threads)
            self.floors.read.setdefault(threads, []).append(seconds)
        size = self.inputs.base.stat().st_size
        written, flushed = measure.write_seconds(self.work / "written", size)
        self.floors.write.append(written)
        self.floors.flush.append(flushed)

    def _prepare(self) -> None:
        """Bring the page cache into the requested state, with no pending writes."""
        if self.cold:
            measure.drop_cached(self.inputs.files)
        else:
            measure.flush_all()
            measure.read_seconds(self.inputs.files)

    def _time(self, method: Method, tool: Tool, inputs: Checkpoints, label: str) -> None:
        """Run a tool once, unless it failed before; record and print the time."""
        row = self.rows.setdefault((label, tool.name), report.Row(label, tool.name))
        if row.failed:
            return
        output, log = self._output(tool), self.work / "log.txt"
        shutil.rmtree(output.parent, ignore_errors=True)
        output.parent.mkdir(parents=True)
        command = tool.command(method, inputs, output)
        limit = int(0.95 * measure.memory_available())
        row.runs.append(measure.run(command, log=log, folder=ROOT, limit=limit))
        print(f"{label}, {tool.name}: {row.runs[-1].wall:.2f} s", file=sys.stderr)
        if row.failed:
            tail = log.read_text(errors="replace")[-2000:]
            print(f"failed with code {row.runs[-1].code}:\n{tail}", file=sys.stderr)

    def _output(self, tool: Tool) -> Path:
        return self.work / "out" / tool.name / "model.safetensors"

    def _compare(self, method: Method, tool: Tool) -> None:
        """In the first round, compare a tool's output with the first tool's; then remove it."""
        first = self.tools[0]
        if tool is first:
            return
        row, reference = self.rows[method.label, tool.name], self.rows[method.label, first.name]
        if len(row.runs) == 1 and not row.failed and not reference.failed:
            found = compare(self.inputs.base, self._output(first), self._output(tool))
            random = method.random and not isinstance(tool, LightningMerge)
            self.agreements.append(report.agreement_line(method.label, tool.name, found, random))
        shutil.rmtree(self._output(tool).parent, ignore_errors=True)

    @property
    def failed(self) -> bool:
        """Whether one of our own merges failed."""
        ours = {tool.name for tool in self.tools if isinstance(tool, LightningMerge)}
        return any(row.failed for row in self.rows.values() if row.tool in ours)

    def tables(self) -> str:
        """All tables in Markdown."""
        ours = [tool for tool in self.tools if isinstance(tool, LightningMerge)][-1]
        threads = {tool.name: tool.threads for tool in self.tools}
        passes = {method.label: method.passes for method in self.methods}
        lines = [
            report.cells(
                row,
                self.rows[row.method, ours.name],
                self.rows[START, row.tool],
                self.floors.seconds(passes.get(row.method, 0), threads[row.tool]),
            )
            for row in self.rows.values()
        ]
        size = self.inputs.base.stat().st_size
        parts = [
            report.markdown(report.HEADER, lines),
            report.floor_table(self.floors, size * len(self.inputs.files), size),
        ]
        if self.agreements:
            parts.append(report.markdown(report.AGREEMENT_HEADER, self.agreements))
        return "\n\n".join(parts)
