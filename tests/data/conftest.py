"""Tiny tasks on disk."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightning_merge.data import MergeDataModule
from lightning_merge.models.image_preprocess import ImagePreprocess


def make_picture(number, *shape):
    """A random image that follows from its number alone, 8 x 8 RGB unless a shape is given."""
    shape = shape or (8, 8, 3)
    return Image.fromarray(np.random.RandomState(number).randint(0, 256, shape, dtype=np.uint8))


@pytest.fixture
def picture():
    return make_picture


@pytest.fixture
def make_task(tmp_path):
    """Write <root>/<task>/{train,test}/<class>/<image>, all images different."""
    counter = iter(range(10**6))

    def make(task, classes=("a", "b"), train=10, test=4, suffix=".png"):
        for split, count in {"train": train, "test": test}.items():
            for name in classes:
                folder = tmp_path / "root" / task / split / name
                folder.mkdir(parents=True, exist_ok=True)
                for i in range(count):
                    make_picture(next(counter)).save(folder / f"{i}{suffix}")
        return tmp_path / "root"

    return make


@pytest.fixture
def preprocess():
    return ImagePreprocess(size=8, mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.fixture
def root(make_task) -> Path:
    make_task("one", train=10)
    make_task("two", classes=("x", "y", "z"), train=20, test=5, suffix=".jpg")
    return make_task("three", train=15, test=3)


@pytest.fixture
def make(root, preprocess):
    """Make a data module of the three tasks."""

    def make(tasks=("one", "two", "three"), loaded=True, **options):
        data = MergeDataModule(str(root), tasks=tasks, **options)
        data.preprocess = preprocess
        if loaded:
            data.load()
        return data

    return make
