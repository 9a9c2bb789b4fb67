"""The pool and the embedded tasks."""

import io

import numpy as np
import pytest
import torch

from lightning_merge.core.checkpoints.checkpoint import save_checkpoint
from lightning_merge.core.errors import InputError
from lightning_merge.data import embedded
from lightning_merge.data.datamodule import MergeDataModule
from lightning_merge.data.drawn import DRAWN_TASKS, draw
from lightning_merge.data.embedded import PRETRAINING, EmbeddedTasks
from lightning_merge.data.pool import ImagePool


@pytest.fixture
def pool(tmp_path, picture):
    encoded, source, labels = [], [], []
    for i in range(40):
        file = io.BytesIO()
        picture(i).save(file, "WEBP", lossless=True)
        encoded.append(file.getvalue())
        source.append(i % 2)
        labels.append(i % 4 // 2 if i % 2 else i % 10 // 2)
    tensors = {
        "images": torch.frombuffer(bytearray(b"".join(encoded)), dtype=torch.uint8),
        "offsets": torch.tensor([0, *np.cumsum([len(e) for e in encoded])]),
        "labels": torch.tensor(labels, dtype=torch.int16),
        "source": torch.tensor(source, dtype=torch.uint8),
    }
    path = tmp_path / "pool.safetensors"
    save_checkpoint(tensors, path, metadata={"sources": "even,odd"})
    return path


def test_the_pool_gives_its_sources_as_tasks(pool, picture, preprocess):
    source = ImagePool(str(pool))
    assert source.tasks() == ["even", "odd"]
    odd = source.load("odd", "train")
    assert len(odd) == 20
    assert odd.classes == ("0", "1")
    assert np.array_equal(np.asarray(odd.item(3)), np.asarray(picture(7)))
    data = MergeDataModule(str(pool), source="pool", fit_on="train")
    data.preprocess = preprocess
    data.setup("fit")
    assert (
        data.record["even"]["train"]["images"] + data.record["even"]["validation"]["images"] == 20
    )


@pytest.mark.parametrize(
    ("task", "split", "message"),
    [("both", "train", "'both' is not in the pool"), ("odd", "test", "has only train, not test")],
)
def test_what_the_pool_has_not(pool, task, split, message):
    with pytest.raises(InputError, match=message):
        ImagePool(str(pool)).load(task, split)


def test_a_file_that_is_no_pool(tmp_path):
    with pytest.raises(InputError, match="is not a file"):
        ImagePool(str(tmp_path / "none.safetensors"))
    save_checkpoint({"images": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(
        InputError, match="is not a pool of images: it lacks labels, offsets, source"
    ):
        ImagePool(str(tmp_path / "other.safetensors"))


def test_embedded_tasks(monkeypatch):
    monkeypatch.setattr(embedded, "PRETRAINING_IMAGES", 96)
    source = EmbeddedTasks("")
    assert source.tasks() == list(DRAWN_TASKS)
    examples = source.load("drawn_hues", "test")
    images, labels = draw("drawn_hues", "test")
    assert torch.equal(examples.labels, labels)
    assert np.array_equal(np.asarray(examples.item(5)), images[5].permute(1, 2, 0).numpy())
    assert len(source.load(PRETRAINING, "train")) == 96
    assert not source.offers(PRETRAINING, "test")
    for task, split in [("mnist", "train"), (PRETRAINING, "test")]:
        with pytest.raises(InputError, match=f"{task}' is not drawn for {split}"):
            source.load(task, split)


def test_embedded_tasks_divide(preprocess):
    data = MergeDataModule(source="drawn", tasks=["digits8x8", "drawn_shapes"])
    data.preprocess = preprocess
    data.load()
    assert data.record["digits8x8"]["test"]["images"] == 400
    assert data.inputs("drawn_shapes", "test")[0].inputs.shape == (1, 3, 8, 8)
