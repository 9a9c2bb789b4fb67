"""Time merging from files to a file, compared with other tools and with moving the bytes.

One command makes the checkpoints and prints the tables; README.md explains how to read them.
"""

import argparse
import sys
from pathlib import Path

import report
from checkpoints import TOWERS, make_checkpoints
from contenders import METHODS, FusionBench, LightningMerge, Mergekit, Tool
from session import Session


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(description=__doc__)
    add = made.add_argument
    add("--work", type=Path, required=True, help="folder for checkpoints, which stay, and outputs")
    add("--model", choices=TOWERS, default="vit_b32", help="whose layout the checkpoints have")
    add("--experts", type=int, default=8, help="how many there are")
    add("--methods", nargs="*", choices=METHODS, default=list(METHODS), help="what to merge by")
    add("--jobs", type=int, nargs="+", default=[1, 2], help="values of our --jobs")
    add("--mergekit", type=Path, metavar="PYTHON", help="python of an environment with mergekit")
    add("--fusionbench", type=Path, metavar="PYTHON", help="the same with fusion-bench")
    add("--repeat", type=int, default=3, help="how often everything runs, in turns")
    add("--cold", action="store_true", help="drop inputs from the page cache before each run")
    add("--m-ties", action="store_true", help="also time M-TIES against its parts")
    return made


def find_tools(given: argparse.Namespace) -> list[Tool]:
    """Return ours, once per number of jobs, then the peers whose environments were given."""
    tools: list[Tool] = [LightningMerge(Path(sys.executable), jobs) for jobs in given.jobs]
    if given.mergekit:
        tools.append(Mergekit(given.mergekit.absolute()))
    if given.fusionbench:
        tools.append(FusionBench(given.fusionbench.absolute()))
    return tools


def describe(session: Session, given: argparse.Namespace) -> str:
    """Return a description of the machine, the inputs and the versions."""
    versions = {tool.versions(): None for tool in session.tools}
    cache = "dropped before each run" if given.cold else "read before each run"
    return "\n".join(
        [
            f"* {report.machine()}",
            f"* {given.experts} experts and base of {given.model}, float32, "
            f"{sum(file.stat().st_size for file in session.inputs.files) / 1e9:.2f} GB",
            f"* {'; '.join(versions)}",
            f"* inputs {cache}: {min(session.cached):.0%} to {max(session.cached):.0%} of their "
            "pages cached when it began",
            f"* {given.repeat} runs of each, in turns",
        ]
    )


def main() -> int:
    """Make the checkpoints, measure and print; return 1 if one of our own merges failed."""
    failed = False
    given = parser().parse_args()
    work = given.work.absolute()
    inputs = make_checkpoints(work / given.model, TOWERS[given.model], given.experts)
    if given.methods:
        tiny = make_checkpoints(work / "tiny", TOWERS["tiny"], given.experts)
        methods = [METHODS[name] for name in given.methods]
        session = Session(work, inputs, tiny, find_tools(given), methods, given.cold)
        for _ in range(given.repeat):
            session.round()
        print(describe(session, given), session.tables(), sep="\n\n")
        failed = session.failed
    if given.m_ties:
        from m_ties import time_m_ties

        print("", time_m_ties(inputs, TOWERS[given.model], given.repeat), sep="\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
