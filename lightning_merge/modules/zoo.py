"""Files of the networks to merge: a base, its experts and their heads."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import Tensor

from lightning_merge.core.checkpoints.checkpoint import match_names, open_checkpoint, spelled_as
from lightning_merge.core.checkpoints.digests import file_record
from lightning_merge.core.errors import InputError, warn
from lightning_merge.core.vectors.headers import check_before_fetching
from lightning_merge.core.vectors.suspicions import suspicions
from lightning_merge.core.vectors.task_vectors import TaskVectors
from lightning_merge.core.vectors.validate import check_experts
from lightning_merge.data.prompts import Wording
from lightning_merge.evaluation.candidates import Candidate, bounds
from lightning_merge.models.encoder import Encoder
from lightning_merge.modules.heads import HeadFiles, head_files
from lightning_merge.modules.task_files import task_file


@dataclass(frozen=True)
class TextTower:
    """An open_clip model whose text tower turns prompts into zero-shot heads.

    Args:
        name: Model name, such as ViT-B-32-quickgelu.
        pretrained: Tag of its published weights.
        weights: File of the whole model's weights, instead of `pretrained`.
        prompts: Class names and templates: our `own`, or those of the package `clip_benchmark`,
            which most published heads have, too; `auto` takes the latter if it is installed.

    Examples:
        >>> TextTower(pretrained="openai").name
        'ViT-B-32-quickgelu'
    """

    name: str = "ViT-B-32-quickgelu"
    pretrained: str | None = None
    weights: str | None = None
    prompts: Wording = "auto"

    def __str__(self) -> str:
        """Describe the network alone; heads record their prompts task by task."""
        own = {"name": self.name, "pretrained": self.pretrained, "weights": self.weights}
        return f"TextTower({', '.join(f'{key}={value!r}' for key, value in own.items())})"


@dataclass(frozen=True)
class Zoo:
    """Files of a base, its experts and their heads; `fit` makes missing files.

    Args:
        base: Weights of the base.
        experts: File of each expert: a pattern with {task}, or a mapping from task to file.
        heads: File of the frozen heads of all tasks, or one file per task, given like the experts,
            such as the published `head_{task}.pt`; these must exist. `hf:...` is a file on the Hub.
        make_heads: How to make missing heads: from the class means of the base's features of the
            train split, by logistic regression on these features, from prompts by a text tower, or
            by taking those that published experts of text have ("experts"), where tasks without
            an expert get class means.
        head_scale: Factor of the cosines of class-mean heads.
        text: Text tower of zero-shot heads.
        base_recipe: Config of the run that makes a missing base.
        expert_recipe: Config of the run that makes a missing expert of any task.
        expert_seed: Seed of the expert recipe, instead of its own.
        multi_task: Weights of one network trained on all seen tasks together, a row of every table.
        multi_task_recipe: Config of the run that makes a missing multi-task network.
        teachers: Experts of another architecture, made first if they are missing. The expert
            recipe must be one of `Distill`, which makes a student of each teacher.

    Examples:
        >>> zoo = Zoo("base.safetensors", "{task}.safetensors", "heads.safetensors")
        >>> zoo.inputs(["cars"])
        ['base.safetensors', 'heads.safetensors', 'cars.safetensors']
    """

    base: str
    experts: str | dict[str, str]
    heads: HeadFiles
    make_heads: Literal["class_means", "linear_probe", "zero_shot", "experts"] = "class_means"
    head_scale: float = 20.0
    text: TextTower = field(default_factory=TextTower)
    base_recipe: str | None = None
    expert_recipe: str | None = None
    expert_seed: int | None = None
    multi_task: str | None = None
    multi_task_recipe: str | None = None
    teachers: "Teachers | None" = None

    def expert(self, task: str) -> str:
        """Return the file of a task's expert.

        Raises:
            InputError: The mapping lacks the task, or the pattern has no {task}.
        """
        return task_file(self.experts, task, "zoo.experts")

    def files(self, tasks: Sequence[str]) -> set[Path]:
        """Return all files, by their resolved paths."""
        return {Path(f).resolve() for f in self.inputs(tasks)}

    def inputs(self, tasks: Sequence[str]) -> list[str]:
        """Return the files that the results of a run depend on."""
        multi_task = [] if self.multi_task is None else [self.multi_task]
        heads = head_files(self.heads, tasks)
        return [self.base, *heads, *map(self.expert, tasks), *multi_task]

    def bounds(self, tasks: Sequence[str]) -> Sequence[Candidate]:
        """Return the rows of every table that are not merged networks."""
        experts = {task: Path(self.expert(task)) for task in tasks}
        multi_task = None if self.multi_task is None else Path(self.multi_task)
        return bounds(Path(self.base), experts, multi_task)

    def open(
        self, encoder: Encoder, tasks: Sequence[str], *, minimum: int = 2, multi_task: bool = True
    ) -> tuple[Mapping[str, Tensor], dict[str, Mapping[str, Tensor]]]:
        """Return base and experts under the names of the encoder's backbone, checked.

        The base is converted to float32, so that every network merged from it is as exact as a
        learned one.

        Args:
            encoder: Architecture of the networks; it receives the base's weights.
            tasks: Tasks whose experts to open.
            minimum: Least number of experts.
            multi_task: Also check the file of the multi-task network, if there is one.

        Raises:
            InputError: A file is missing or has another architecture, or an expert does not fit
                the base; all problems are listed.
        """
        files = {f"expert of {task}": self.expert(task) for task in tasks} | {"base": self.base}
        if multi_task and self.multi_task is not None:
            files = {"multi-task network": self.multi_task} | files
        check_before_fetching(files)
        if problems := [
            text for what, file in files.items() for text in misfit(encoder, what, file)
        ]:
            raise InputError("\n".join(problems))
        encoder.load(self.base)
        stored = encoder.fitting(self.base)
        base = {name: t.float() if t.is_floating_point() else t for name, t in stored.items()}
        experts: dict[str, Mapping[str, Tensor]] = {
            task: encoder.fitting(self.expert(task)) for task in tasks
        }
        check_experts(base, experts, minimum=minimum)
        for suspicion in suspicions(TaskVectors(base, experts)):
            warn(suspicion)
        return base, experts

    def named_as_base(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return merged weights under the names in the base's file.

        So they load wherever the base does. The encoder's names are kept if the file has other
        tensors than the encoder.
        """
        base = open_checkpoint(self.base)
        spelled = spelled_as(weights, base)
        try:
            stored = match_names(spelled, base)
        except InputError:
            return weights
        return {stored[name]: tensor for name, tensor in spelled.items()}

    def hashes(self, tasks: Sequence[str]) -> dict[str, str]:
        """Return the SHA-256 of base and experts, for the metadata of merged networks."""
        experts = {f"expert/{task}": file_record(self.expert(task), "sha256") for task in tasks}
        return {"base": file_record(self.base, "sha256"), **experts}


@dataclass(frozen=True)
class Teachers:
    """Experts from which students of another architecture are distilled.

    Args:
        encoder: Architecture of the experts.
        zoo: Files and recipes of the experts.

    Examples:
        >>> from lightning_merge.models import MiniResNet
        >>> zoo = Zoo("base.safetensors", "{task}.safetensors", "heads.safetensors")
        >>> Teachers(MiniResNet(), zoo).zoo.expert("cars")
        'cars.safetensors'
    """

    encoder: Encoder
    zoo: Zoo


def misfit(encoder: Encoder, what: str, file: str) -> Iterator[str]:
    """Yield the reason why a file's weights do not fit an encoder, if they do not.

    Args:
        encoder: Architecture; tensors that it lacks are a reason, too.
        what: What the file is, for messages.
        file: Checkpoint.

    Examples:
        >>> from lightning_merge.models import MiniViT
        >>> list(misfit(MiniViT(depth=1), "base", "nowhere.safetensors"))
        ['base: nowhere.safetensors does not exist...']
    """
    try:
        encoder.fitting(file)
    except InputError as fault:
        yield f"{what}: {fault}"
