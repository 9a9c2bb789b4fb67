"""Measurements of base and experts, which later runs beside this one need not repeat."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ProgressBar
from torch import Tensor

from lightning_merge.core.checkpoints.digests import code_of
from lightning_merge.core.checkpoints.files import atomic_folder
from lightning_merge.core.errors import InputError, warn
from lightning_merge.data.datamodule import MergeDataModule
from lightning_merge.evaluation.candidates import Candidate
from lightning_merge.evaluation.correctness import Correctness
from lightning_merge.evaluation.results import CandidateResult, Results, versions
from lightning_merge.models.encoder import Encoder

FOLDER = ".references"
"""Folder beside run folders that holds what was measured of their references."""

_HOOKS = (
    *("on_test_start", "on_test_epoch_start", "on_test_batch_start"),
    *("on_test_batch_end", "on_test_epoch_end", "on_test_end"),
)
Row = tuple[CandidateResult, dict[str, Tensor]]
"""A row of the table, and which images were classified correctly, by task."""


class References:
    """Rows of base, experts and a network of all tasks, kept beside the run folders.

    A kept row is taken if it depended on the same weights, heads, test examples, encoder, batch
    size, precision, device, number of processes and versions. Passes that were cut short, joint
    labels and callbacks that look at test batches leave every row to be measured.

    Args:
        folder: Folder of the run; rows are kept beside it.
        about: What the rows depend on besides data and trainer: the encoder's options, and the
            digests of weights and heads. Anything that JSON can hold.

    Examples:
        >>> References(Path("runs/one"), {"file base": "sha256:ab"}).folder.as_posix()
        'runs/.references'
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.folder, self._about = folder.parent / FOLDER, about

    def key(
        self, trainer: Trainer, encoder: Encoder, data: MergeDataModule, candidate: Candidate
    ) -> str | None:
        """Return the name of a candidate's row; None if it has to be measured in any case.

        Args:
            trainer: Trainer that would measure it.
            encoder: The encoder.
            data: The tasks.
            candidate: The candidate.
        """
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        limit = trainer.limit_test_batches  # the integer 1 is one batch
        whole = isinstance(limit, float) and limit == 1.0
        if not candidate.bound or data.joint_labels or not whole or any(map(_looks_on, callbacks)):
            return None
        files = candidate.weights
        depends = {
            **self._about,
            **code_of(encoder),
            "row": [candidate.name, candidate.note],
            "files": {t: str(f) for t, f in files.items()} if isinstance(files, Mapping) else "",
            "test": {task: data.record[task]["test"]["digest"] for task in data.evaluated},
            "corruption": str(data.kept.corrupted),
            "apart": [data.unseen, data.out_of_domain],
            "batch size": data.eval_batch_size,
            "precision": str(trainer.precision),
            "processes": [trainer.world_size, torch.get_num_threads()],
            "versions": versions(_named(trainer.strategy.root_device)),
            "products": torch.get_float32_matmul_precision(),
        }
        text = json.dumps(depends, sort_keys=True, default=str)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def read(self, key: str) -> Row | None:
        """Return a kept row; None if there is none that can be read.

        Args:
            key: Name of the row.
        """
        place = self.folder / key
        try:
            results, right = Results.from_json(place / "results.json"), Correctness.read(place)
        except (InputError, OSError):
            return None
        if right is None or not right.fits(results):
            return None
        [(name, row)] = results.candidates.items()
        return row, dict(right.right[name])

    def write(self, key: str, row: Row, data: MergeDataModule) -> None:
        """Keep a row; a folder that cannot be written keeps nothing, and a warning says so.

        Args:
            key: Name of the row.
            row: The row.
            data: The tasks.
        """
        found, right = row
        digests = {task: data.record[task]["test"]["digest"] for task in right}
        results = Results(
            tasks=[*found.accuracy], candidates={found.name: found}, seed=0, versions=versions()
        )
        try:
            with atomic_folder(self.folder / key, overwrite=True) as new:
                Correctness(digests, {found.name: right}).write(new)
                results.to_json(new / "results.json")
        except (InputError, OSError) as fault:
            warn(f"what was measured of {found.name} is not kept in {self.folder}: {fault}")


def _named(device: torch.device) -> str:
    """Return a device with the name of its kind, as GPUs of two kinds round differently."""
    return (
        f"{device}: {torch.cuda.get_device_name(device)}" if device.type == "cuda" else str(device)
    )


def _looks_on(callback: Callback) -> bool:
    """Whether a callback looks at test batches, and not only at their number."""
    own = type(callback)
    changed = any(getattr(own, hook) is not getattr(Callback, hook) for hook in _HOOKS)
    return changed and not isinstance(callback, ProgressBar)
