"""Write predictions to a CSV file."""

import csv
import io
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from torch import Tensor

from lightning_merge.core.checkpoints.files import write_text
from lightning_merge.core.ranks import Ranks


class WritePredictions(Callback):
    """Write predictions.csv into the run folder: task, index of the test image, file, class.

    File paths are relative to the task's folder; the column is empty for images without files.
    With several processes, the first one gathers the predictions and writes them in the same order
    as a single process would.

    Examples:
        >>> trainer = Trainer(callbacks=[WritePredictions()], logger=False)
    """

    def on_predict_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Discard the predictions of an earlier pass."""
        self.batches: list[list[Tensor]] = [[] for _ in pl_module.data.evaluated]

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Store the predicted classes of one batch."""
        self.batches[dataloader_idx].append(outputs.cpu())

    def on_predict_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Write one line per test image, task by task."""
        ranks = Ranks.of(trainer)
        found = ranks.gather(self.batches)
        if ranks.rank == 0:
            data, text = trainer.datamodule, io.StringIO(newline="")  # type: ignore[attr-defined]
            writer = csv.writer(text)
            writer.writerow(["task", "index", "file", "class"])
            for task, *shares in zip(data.evaluated, *found, strict=True):
                names, images = data.classes[task], data.inputs(task, "test")
                for i, predicted in enumerate(_in_order(shares)):
                    writer.writerow([task, i, images.file(i), names[predicted]])
            write_text(Path(trainer.default_root_dir) / "predictions.csv", text.getvalue())


def _in_order(shares: Iterable[Iterable[Tensor]]) -> list[int]:
    """Return the values of all batches in order; batches alternate between the processes."""
    return [value for batch in chain(*zip(*shares, strict=True)) for value in batch.tolist()]
