"""The file of learned coefficients, written by runs and read by `LearnedCoefficients`."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_merge.core.checkpoints.checkpoint import open_checkpoint, save_checkpoint
from lightning_merge.core.errors import InputError
from lightning_merge.core.vectors.learner import StatsMergeLearner

SEEN = ("statistics_of", "rank", "features")
"""Options of the statistics that a learner reads, stored with its own options."""
_PREFIX = "learner."


@dataclass(frozen=True)
class CoefficientFile:
    """What a run learned.

    Attributes:
        values: Coefficients [K, L].
        tasks: Names of the K tasks.
        layers: Names of the L layers.
        options: Arguments of the learner; empty if it cannot be rebuilt.
        state: Weights of the learner.
        scale: Factor applied to the learner's coefficients at the end.
        transductive: Whether they were learned from unlabelled test examples.
        note: Caveat for readers of their numbers.

    Examples:
        >>> import torch
        >>> values, tasks, layers = torch.tensor([[0.3, 0.5]]), ["cars"], ["w", "b"]
        >>> learned = CoefficientFile(values, tasks, layers, {}, {}, 1.0, False, "")
        >>> learned.write(Path("coefficients.safetensors"), {"seed": "0"})
        >>> CoefficientFile.read("coefficients.safetensors").layers
        ['w', 'b']
    """

    values: Tensor
    tasks: Sequence[str]
    layers: Sequence[str]
    options: Mapping[str, Any]
    state: Mapping[str, Tensor]
    scale: float
    transductive: bool
    note: str

    @property
    def described(self) -> dict[str, str]:
        """Metadata on the learning, for this file and for weights merged with it."""
        return {
            "tasks": json.dumps(self.tasks),
            "layers": json.dumps(self.layers),
            "final_scale": repr(self.scale),
            "transductive": str(self.transductive),
            "note": self.note,
        }

    def write(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Write the file.

        Args:
            path: Path of the file.
            metadata: Further metadata of the run.
        """
        learner = {"learner": json.dumps(self.options)} if self.options else {}
        state = {_PREFIX + name: tensor.cpu() for name, tensor in self.state.items()}
        tensors = {"coefficients": self.values.cpu(), **state}
        save_checkpoint(tensors, path, metadata={**metadata, **self.described, **learner})

    @classmethod
    def read(cls, path: str) -> "CoefficientFile":
        """Read a file.

        Raises:
            InputError: It is missing, unreadable or not a file of coefficients.
        """
        stored = open_checkpoint(path)
        metadata = stored.metadata
        try:
            tasks, layers = (json.loads(metadata[key]) for key in ("tasks", "layers"))
            options = json.loads(metadata.get("learner", "{}"))
            scale = float(metadata.get("final_scale", 1))
            fits = stored.shape("coefficients") == (len(tasks), len(layers))
            fits = fits and isinstance(options, dict) and math.isfinite(scale)
        except (KeyError, ValueError, TypeError):
            fits = False
        if not fits or not stored["coefficients"].isfinite().all():
            raise InputError(
                f"file={path!r} has no coefficients with the names of tasks and layers; give the "
                "coefficients.safetensors of a run that learned some"
            )
        return cls(
            stored["coefficients"].float(),
            tasks,
            layers,
            options,
            {n.removeprefix(_PREFIX): stored[n] for n in stored if n.startswith(_PREFIX)},
            scale,
            metadata.get("transductive") == "True",
            metadata.get("note", ""),
        )

    def learner(self, features: Tensor) -> StatsMergeLearner:
        """Return the run's learner, applied to other statistics [K, L, F]."""
        options = {key: value for key, value in self.options.items() if key not in SEEN}
        learner = StatsMergeLearner(features, **options)
        learner.load_state_dict(self.state)
        return learner
