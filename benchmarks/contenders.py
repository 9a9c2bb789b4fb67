"""The merges to time, and how to run them with each tool."""

import json
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from checkpoints import Checkpoints

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Method:
    """One merge, with the options of every tool that supports it.

    Attributes:
        label: Name in the table.
        passes: Minimum number of times all experts are read when they do not fit into memory:
            twice if merging the first value requires a statistic over all of them.
        ours: Options of `python -m lightning_merge merge`.
        mergekit: Configuration for mergekit, without the models.
        fusion_bench: First argument of the script in peers/.
        random: Whether the merge uses random numbers, so that outputs of two tools agree only in
            distribution.
    """

    label: str
    passes: int
    ours: Sequence[str]
    mergekit: Mapping[str, Any] | None = None
    fusion_bench: str | None = None
    random: bool = False


METHODS = {
    "average": Method(
        "average",
        1,
        ["--method", "Average"],
        {"merge_method": "linear", "parameters": {"weight": 1.0}},
        "average",
    ),
    "task_arithmetic": Method(
        "task arithmetic",
        1,
        ["--method", "TaskArithmetic", "--method.scale", "0.3"],
        {"merge_method": "task_arithmetic", "parameters": {"weight": 0.3}},
        "task_arithmetic",
    ),
    "ties_per_tensor": Method(
        "TIES, per tensor",
        1,
        ["--method", "Ties", "--method.density", "0.2", "--method.trim", "per_tensor"],
        {"merge_method": "ties", "parameters": {"weight": 1.0, "density": 0.2}},
    ),
    "ties_global": Method(
        "TIES, global",
        2,
        ["--method", "Ties", "--method.density", "0.2", "--method.trim", "global"],
        fusion_bench="ties",
    ),
    "lwptv": Method(
        "LwPTV + task arithmetic",
        2,
        ["--method", "TaskArithmetic", "--method.transforms", '[{"class_path": "LwPTV"}]'],
    ),
    "dare": Method(
        "DARE + task arithmetic",
        1,
        ["--method", "TaskArithmetic", "--method.transforms", '[{"class_path": "Dare"}]'],
        {"merge_method": "dare_linear", "parameters": {"weight": 0.3, "density": 0.1}},
        "dare",
        random=True,
    ),
}


@dataclass(frozen=True)
class Tool(ABC):
    """A program that merges files."""

    python: Path
    package: ClassVar[str]

    @property
    @abstractmethod
    def name(self) -> str:
        """Name in the table."""

    @abstractmethod
    def offers(self, method: Method) -> bool:
        """Return whether the tool supports this merge."""

    @abstractmethod
    def command(self, method: Method, inputs: Checkpoints, output: Path) -> list[str]:
        """Return the command to run; other files than the merged one go next to `output`."""

    @property
    def threads(self) -> int:
        """The number of threads that read the files."""
        return 1

    def versions(self) -> str:
        """Return the versions of the tool and of torch in its environment."""
        code = (
            "import importlib.metadata as m, sys;"
            "print(' with '.join(f'{p} {m.version(p)}' for p in sys.argv[1:]))"
        )
        command = [str(self.python), "-c", code, self.package, "torch"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@dataclass(frozen=True)
class LightningMerge(Tool):
    """This project, with a given number of jobs."""

    jobs: int
    package: ClassVar[str] = "lightning-merge"

    @property
    def name(self) -> str:
        """Name in the table."""
        return f"lightning-merge, --jobs {self.jobs}"

    @property
    def threads(self) -> int:
        """The number of jobs, with one thread each."""
        return self.jobs

    def offers(self, method: Method) -> bool:
        """Return true: this project supports every merge."""
        return True

    def command(self, method: Method, inputs: Checkpoints, output: Path) -> list[str]:
        """Return the plain command of the README."""
        command = [str(self.python), "-m", "lightning_merge", "merge", "--base", str(inputs.base)]
        for task, path in inputs.experts.items():
            command += [f"--experts.{task}", str(path)]
        return [*command, *method.ours, "--output", str(output), "--jobs", str(self.jobs)]


@dataclass(frozen=True)
class Mergekit(Tool):
    """`mergekit-pytorch`, its command for weights of any architecture."""

    package: ClassVar[str] = "mergekit"

    @property
    def name(self) -> str:
        """Name in the table."""
        return "mergekit"

    def offers(self, method: Method) -> bool:
        """Return whether the merge has a mergekit configuration."""
        return method.mergekit is not None

    def command(self, method: Method, inputs: Checkpoints, output: Path) -> list[str]:
        """Write the configuration (JSON is YAML) and return the command, which writes a folder."""
        config = {
            **(method.mergekit or {}),
            "models": [{"model": str(path)} for path in inputs.experts.values()],
        }
        if config["merge_method"] != "linear":
            config["base_model"] = str(inputs.base)
        recipe = output.with_suffix(".yaml")
        recipe.write_text(json.dumps(config))
        return [str(self.python.with_name("mergekit-pytorch")), str(recipe), str(output.parent)]


@dataclass(frozen=True)
class FusionBench(Tool):
    """FusionBench's algorithms, called from a script."""

    package: ClassVar[str] = "fusion-bench"

    @property
    def name(self) -> str:
        """Name in the table."""
        return "FusionBench"

    def offers(self, method: Method) -> bool:
        """Return whether the script supports the merge."""
        return method.fusion_bench is not None

    def command(self, method: Method, inputs: Checkpoints, output: Path) -> list[str]:
        """Return the command that runs the script with all paths."""
        script = ROOT / "benchmarks" / "peers" / "merge_with_fusion_bench.py"
        files = [output, *inputs.files]
        return [str(self.python), str(script), str(method.fusion_bench), *map(str, files)]
