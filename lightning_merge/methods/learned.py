"""Merging with coefficients that another run learned, on the same or other experts."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from lightning_merge.core.checkpoints.digests import file_hash
from lightning_merge.core.checkpoints.names import enumerate_names, match_names
from lightning_merge.core.checks import require_choice
from lightning_merge.core.errors import InputError
from lightning_merge.core.facts import Facts
from lightning_merge.core.vectors.statistics import feature_names, standard_statistics
from lightning_merge.core.vectors.task_vectors import TaskVectors, sum_tasks
from lightning_merge.methods.base import MergeMethod, Origin, Resources, Update
from lightning_merge.methods.coefficient_file import SEEN, CoefficientFile

By = Literal["layer", "depth", "statistics"]


@dataclass(frozen=True)
class LearnedCoefficients(MergeMethod):
    """theta_0 + sum_k c_kl tau_kl with coefficients c that a run learned. Needs its file.

    How c [K, L] follows from the file, for K experts with L tensors:

    * "layer": the file's coefficients, with tasks and layers matched by name up to a prefix. The
      file may have more tasks and layers, and the base more tensors that no expert has changed.
    * "depth": for another architecture. Layer l of L takes the coefficient of layer
      floor(l (M - 1) / (L - 1) + 1/2) of the M in the file, the nearest at the same relative
      depth; if L = 1, that of layer 0. Layers count in the base's order. A task missing from the
      file takes the mean over the file's tasks.
    * "statistics": the run's StatsMergeLearner predicts c from the standardised statistics of
      these experts, times the factor that the run applied at the end. It is the same network for
      any tasks and layers, and depends on neither names nor depth.

    Statistics are of the transformed task vectors. Coefficients learned with transforms need the
    same transforms here, as the file does not record them.

    Reference: StatsMerging 2025, appendix A.5.2 (there 320 coefficients of ViT-B/32 are
    subsampled to 22 of ResNet50; how, it does not say), after Wang et al. 2024, LiNeS.

    Args:
        file: The `coefficients.safetensors` of a run.
        by: "layer", "depth" or "statistics".

    Raises:
        InputError: `by` is unknown or the file is missing. When merging: the file is unreadable or
            lacks what `by` needs; or, by "depth", the base is not in the network's order or has
            the same layers as the file in other places.

    Examples:
        >>> values = torch.tensor([[0.5], [2.0]])
        >>> learned = CoefficientFile(values, ["a", "b"], ["w"], {}, {}, 1.0, False, "")
        >>> learned.write(Path("learned.safetensors"), {})
        >>> experts = {"a": {"w": torch.tensor([2.0, 4.0])}, "b": {"w": torch.tensor([1.0, 0.0])}}
        >>> LearnedCoefficients("learned.safetensors")({"w": torch.zeros(2)}, experts)["w"]
        tensor([3., 2.])
    """

    file: str
    by: By = "layer"
    facts: ClassVar[Facts] = Facts(reference="StatsMerging 2025, appendix A.5.2", readings=1)

    def __post_init__(self) -> None:
        require_choice(get_args(By), by=self.by)
        if not Path(self.file).is_file():
            raise InputError(
                f"file={self.file!r} is not a file; give the coefficients.safetensors of a run"
            )

    def requirements(self) -> Facts:
        """Return the facts, with one more reading for statistics."""
        more = int(self.by == "statistics")
        return replace(self.facts, readings=self.facts.readings + more)

    def plan(self, vectors: TaskVectors, resources: Resources) -> Update:
        """Find the coefficients for the weighted sums of task vectors."""
        values = self.coefficients(vectors).to(vectors.device)
        columns = dict(zip(vectors.names, values.T.unsqueeze(2), strict=True))
        return lambda span, tile: sum_tasks(tile.mul_(columns[span.name]))

    @torch.no_grad()
    def coefficients(self, vectors: TaskVectors) -> Tensor:
        """Return the coefficients [K, L] of these task vectors: rows `tasks`, columns `names`."""
        learned = CoefficientFile.read(self.file)
        if not vectors.names:
            return torch.zeros(len(vectors), 0)
        choose = {"layer": self._by_layer, "depth": self._by_depth}
        return choose.get(self.by, self._by_statistics)(learned, vectors)

    def origin(self) -> Origin:
        """Return the tasks, images and labels that the file's run learned from."""
        learned = CoefficientFile.read(self.file)
        return Origin(tuple(learned.tasks), learned.transductive, learned.note)

    def described(self) -> str:
        """Return the method, its hyperparameters and the hash of its file."""
        return f"{super().described()}, sha256 of file {file_hash(self.file)}"

    def _by_layer(self, learned: CoefficientFile, vectors: TaskVectors) -> Tensor:
        """Return the coefficients of the same tasks and layers."""
        missing = [task for task in vectors.tasks if task not in learned.tasks]
        if missing:
            raise InputError(
                f"file={self.file!r} has no coefficients of {enumerate_names(missing)}; it has "
                f"those of {enumerate_names(learned.tasks)}. Rename the experts, or choose "
                "by='depth' or by='statistics'"
            )
        places = _places(learned.layers, vectors)
        if unknown := [name for name, place in places.items() if place is None]:
            remedy = "For another architecture choose by='depth' or by='statistics'"
            if len(unknown) < len(places):
                patterns = ", ".join(unknown[:5])
                remedy = f"Leave them out: --ignore '[{patterns}]', or choose by='statistics'"
            raise InputError(
                f"file={self.file!r} has no coefficients of {enumerate_names(unknown, 5)}, "
                f"which an expert has changed. {remedy}"
            )
        rows = learned.values[[learned.tasks.index(task) for task in vectors.tasks]]
        zero = rows.new_zeros(len(rows))
        columns = (None if vectors.stored.is_kept(n) else places[n] for n in vectors.names)
        return torch.stack([zero if c is None else rows[:, c] for c in columns], dim=1)

    def _by_depth(self, learned: CoefficientFile, vectors: TaskVectors) -> Tensor:
        """Return the coefficients at the same relative depth, of the same task or the mean."""
        _check_order(vectors.names)
        own = _places(learned.layers, vectors)
        places = [own.get(name) for name in vectors.names]
        nearest = same_depth(len(vectors.names), len(learned.layers))
        known = [(a, b) for a, b in zip(places, nearest, strict=True) if a is not None]
        if set(places) >= set(range(len(learned.layers))) and any(a != b for a, b in known):
            raise InputError(
                f"file={self.file!r} was learned on these same layers, and by='depth' would give "
                "them each other's coefficients; choose by='layer'"
            )
        rows = dict(zip(learned.tasks, learned.values, strict=True))
        mean = learned.values.mean(0)
        chosen = torch.stack([rows.get(task, mean) for task in vectors.tasks])
        return chosen[:, nearest]

    def _by_statistics(self, learned: CoefficientFile, vectors: TaskVectors) -> Tensor:
        """Return the learner's coefficients for these experts' statistics."""
        if learned.options.get("kind", "free") == "free":
            raise InputError(
                f"file={self.file!r}: the run learned its coefficients without a network that "
                "reads statistics; choose by='layer' or by='depth'"
            )
        try:
            of, rank, features = (learned.options[key] for key in SEEN)
            if not 0 <= rank <= max(map(Tensor.numel, learned.state.values()), default=0):
                raise TypeError(f"rank={rank} is more than its weights can see")
            learned.learner(torch.zeros(1, 1, len(feature_names(rank, features))))
        except (KeyError, TypeError, RuntimeError) as fault:
            raise InputError(
                f"file={self.file!r}: its learner cannot be rebuilt ({fault}); give a file that "
                "this version wrote, or choose by='layer' or by='depth'"
            ) from fault
        statistics = standard_statistics(vectors, of, rank, features).cpu()
        return learned.scale * learned.learner(statistics)()


def _places(layers: Sequence[str], vectors: TaskVectors) -> dict[str, int | None]:
    """Return the position in the file of each tensor that an expert changed, or None."""
    wanted = [name for name in vectors.names if not vectors.stored.is_kept(name)]
    numbers = {layer: place for place, layer in enumerate(layers)}
    with suppress(InputError):  # the file may have more layers
        return {n: numbers[own] for n, own in match_names(wanted, numbers).items()}
    with suppress(InputError):  # the base more tensors, which nobody has changed
        own = {name: layer for layer, name in match_names(numbers, vectors.base).items()}
        return {name: numbers[own[name]] if name in own else None for name in wanted}
    return dict.fromkeys(wanted)


def same_depth(layers: int, source: int) -> list[int]:
    """Return, for each layer, the nearest of `source` layers at the same relative depth.

    Layer l of L corresponds to l (M - 1) / (L - 1) of M, halves rounded up; a single layer to 0.

    Examples:
        >>> same_depth(3, 5)
        [0, 2, 4]
    """
    last = max(1, layers - 1)
    return [(2 * layer * (source - 1) + last) // (2 * last) for layer in range(layers)]


def _check_order(names: Sequence[str]) -> None:
    """Check that names are not sorted alphabetically, with block 10 before block 2."""
    by_number = sorted(names, key=lambda n: re.sub(r"\d+", lambda digits: digits[0].zfill(9), n))
    if list(names) == sorted(names) != by_number:
        raise InputError(
            f"base: its tensors are in alphabetical order, from {names[0]} to {names[-1]}, but "
            "by='depth' needs the network's order; save it in the order of state_dict()"
        )
