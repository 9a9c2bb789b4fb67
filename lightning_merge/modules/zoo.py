"""The experts to merge: a base, its experts and their heads, by file."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import Tensor

from lightning_merge.core.checkpoints.checkpoint import match_names, open_checkpoint, spelled_as
from lightning_merge.core.checkpoints.digests import file_record
from lightning_merge.core.errors import InputError, warn
from lightning_merge.core.vectors.suspicions import suspicions
from lightning_merge.core.vectors.task_vectors import TaskVectors
from lightning_merge.core.vectors.validate import check_experts
from lightning_merge.evaluation.candidates import Candidate, bounds
from lightning_merge.models.encoder import Encoder
from lightning_merge.modules.heads import HeadFiles, head_files
from lightning_merge.modules.task_files import task_file


@dataclass(frozen=True)
class TextTower:
    """The open_clip model whose text tower turns prompts into zero-shot heads.

    Args:
        name: Model name, such as ViT-B-32-quickgelu.
        pretrained: Tag of its published weights.
        weights: File of the whole model's weights instead.
    """

    name: str = "ViT-B-32-quickgelu"
    pretrained: str | None = None
    weights: str | None = None


@dataclass(frozen=True)
class Zoo:
    """Files of a base, its experts and their heads; `fit` makes those that are missing.

    Args:
        base: Weights of the base.
        experts: File of each expert: a pattern with {task}, or a mapping from task to file.
        heads: File of the frozen heads of all tasks; or one for each, as for the experts, such as
            the published `head_{task}.pt`, which have to be there. One on the Hub is `hf:...`.
        make_heads: How missing heads are made: from the class means of the base's features of
            the train split, by logistic regression on them, or from prompts by a text tower.
        head_scale: What the cosines of class-mean heads are multiplied by.
        text: Text tower of zero-shot heads.
        base_recipe: Config of the run that makes a missing base.
        expert_recipe: Config of the run that makes a missing expert of any task.
        multi_task: Weights of one network trained on all tasks together, a row of every table;
            unseen tasks take no part in it.
        multi_task_recipe: Config of the run that makes it where it is missing.
        teachers: Experts of another architecture; the expert recipe is then one of `Distill`,
            which makes a student of each. They are made first where they are missing.
    """

    base: str
    experts: str | dict[str, str]
    heads: HeadFiles
    make_heads: Literal["class_means", "linear_probe", "zero_shot"] = "class_means"
    head_scale: float = 20.0
    text: TextTower = field(default_factory=TextTower)
    base_recipe: str | None = None
    expert_recipe: str | None = None
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
        """Return all its files, by the one name that each has."""
        return {Path(f).resolve() for f in self.inputs(tasks)}

    def inputs(self, tasks: Sequence[str]) -> list[str]:
        """Return the files that the numbers of a run depend on."""
        multi_task = [] if self.multi_task is None else [self.multi_task]
        heads = head_files(self.heads, tasks)
        return [self.base, *heads, *map(self.expert, tasks), *multi_task]

    def bounds(self, tasks: Sequence[str]) -> Sequence[Candidate]:
        """Return the rows of every table that are no merged networks."""
        experts = {task: Path(self.expert(task)) for task in tasks}
        multi_task = None if self.multi_task is None else Path(self.multi_task)
        return bounds(Path(self.base), experts, multi_task)

    def open(
        self, encoder: Encoder, tasks: Sequence[str], *, minimum: int = 2, multi_task: bool = True
    ) -> tuple[Mapping[str, Tensor], dict[str, Mapping[str, Tensor]]]:
        """Return base and experts under the names of the encoder's backbone, checked.

        The base is in float32, so that every network merged from it is as exact as a learned
        one, whatever it is stored in.

        Args:
            encoder: Their architecture; it is left with the base's weights.
            tasks: Whose experts to open.
            minimum: The least number of experts.
            multi_task: Also check the file of the multi-task network, if there is one.

        Raises:
            InputError: A file is missing, is of another architecture, or an expert does not fit
                the base; all problems are listed.
        """
        files = {f"expert of {task}": self.expert(task) for task in tasks} | {"base": self.base}
        if multi_task and self.multi_task is not None:
            files = {"multi-task network": self.multi_task} | files
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
        """Return merged weights under the names that the base's file has for them.

        So they load where the base does. Where its file has other tensors than the encoder, the
        names stay the encoder's.
        """
        base = open_checkpoint(self.base)
        spelled = spelled_as(weights, base)
        try:
            stored = match_names(spelled, base)
        except InputError:
            return weights
        return {stored[name]: tensor for name, tensor in spelled.items()}

    def hashes(self, tasks: Sequence[str]) -> dict[str, str]:
        """Return the SHA-256 of base and experts, for the metadata of what is merged from them."""
        experts = {f"expert/{task}": file_record(self.expert(task), "sha256") for task in tasks}
        return {"base": file_record(self.base, "sha256"), **experts}


@dataclass(frozen=True)
class Teachers:
    """Experts that students of another architecture are distilled from.

    Args:
        encoder: Their architecture.
        zoo: Their files and recipes.
    """

    encoder: Encoder
    zoo: Zoo


def misfit(encoder: Encoder, what: str, file: str) -> Iterator[str]:
    """Describe why a file's weights are not the encoder's, tensors left over included.

    Args:
        encoder: Architecture.
        what: The file is, for messages.
        file: Checkpoint.
    """
    try:
        encoder.fitting(file)
    except InputError as fault:
        yield f"{what}: {fault}"
