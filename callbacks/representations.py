"""Features of every candidate, compared with the base's and drawn."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_merge.callbacks.checked import CoefficientCallback
from lightning_merge.core.checks import require_choice, require_in
from lightning_merge.core.ranks import Ranks
from lightning_merge.core.seeding import generator_for
from lightning_merge.data.dataset import Batch
from lightning_merge.evaluation.candidates import BASE, EXPERTS
from lightning_merge.evaluation.representations import (
    MIN_IMAGES,
    Projection,
    draw_points,
    feature_distance,
    in_a_plane,
)
from lightning_merge.modules.evaluate import Evaluate

Found = dict[str, list[tuple[Tensor, Tensor, Tensor]]]
"""Task -> index, features and labels of the images of every batch."""


class Representations(CoefficientCallback):
    """Measure how far the features of every candidate are from the base's, and draw them.

    The mean Euclidean distance by task is in results.json and, averaged, in the tables (columns
    `distance` and `distance out of domain`); the pictures are figures/features_NAME.png, one panel
    per data set out of domain, or per task if there is none, and one colour per class. Weights per
    task have the mean distance of all experts out of domain, and no picture there. Nothing is
    chosen by any of it.

    Args:
        images: Test images of each task to take, at random, the same for all candidates.
        projection: "pca" or "tsne".

    Examples:
        >>> callback = Representations(images=200, projection="tsne")
    """

    def __init__(self, images: int = 500, projection: Projection = "pca") -> None:
        require_in(f"[{MIN_IMAGES}, inf)", images=images)
        require_choice(("pca", "tsne"), projection=projection)
        self.images, self.projection = images, projection
        self._rows: dict[str, Tensor] = {}
        self._found: Found = {}
        self._base: dict[str, Tensor] = {}

    def on_test_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Choose the images of every task."""
        self._found = {}
        for task in pl_module.data.evaluated if isinstance(pl_module, Evaluate) else ():
            generator = generator_for(0, "representations", task)
            order = torch.randperm(len(pl_module.data.inputs(task, "test")), generator=generator)
            self._rows[task] = order[: self.images]

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the features of the chosen images of a batch."""
        if not isinstance(pl_module, Evaluate):
            return
        task = pl_module.data.evaluated[dataloader_idx]
        chosen = torch.isin(batch.index.cpu(), self._rows[task])
        if chosen.any():
            part = Batch(*(values[chosen.to(values.device)] for values in batch))
            features = pl_module.batch_features(part, dataloader_idx).float().cpu()
            kept = (part.index.cpu(), features, part.labels.cpu())
            self._found.setdefault(task, []).append(kept)

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Compare the features with the base's, which is measured first, and draw them."""
        if not isinstance(pl_module, Evaluate):
            return
        ranks, name = Ranks.of(trainer), pl_module.candidate.name
        found = _together(ranks.gather(self._found))
        if name == BASE:
            self._base = {task: features for task, (features, _) in found.items()}
        distance = {
            task: feature_distance(features, self._base[task])
            for task, (features, _) in found.items()
            if task in self._base
        }
        pl_module.measured["test"] = pl_module.measured["test"]._replace(distance=distance)
        drawn = pl_module.data.out_of_domain or pl_module.data.tasks
        panels = {
            task: found[task] for task in drawn if len(found.get(task, [[]])[0]) >= MIN_IMAGES
        }
        if panels and (name != EXPERTS or not pl_module.data.out_of_domain):
            path = Path(trainer.default_root_dir) / "figures" / f"features_{name}.png"
            ranks.once(lambda: self._draw(panels, path))

    def _draw(self, panels: dict[str, tuple[Tensor, Tensor]], path: Path) -> None:
        projected = {
            task: (in_a_plane(features, self.projection), labels)
            for task, (features, labels) in panels.items()
        }
        draw_points(projected, path)


def _together(shares: list[Found]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return features and labels by task, in the order of the images, from all processes."""
    together = {}
    for task in dict.fromkeys(task for share in shares for task in share):
        parts = [part for share in shares for part in share.get(task, [])]
        index, features, labels = (torch.cat(values) for values in zip(*parts, strict=True))
        order = index.argsort()
        together[task] = (features[order], labels[order])
    return together
