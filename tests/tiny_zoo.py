"""Two small tasks on disk, a tiny base and its experts: fixtures for modules, callbacks and cli."""

import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from PIL import Image

from lightning_merge.cli.main import NOISE
from lightning_merge.core.checkpoints.checkpoint import save_checkpoint
from lightning_merge.data.datamodule import MergeDataModule
from lightning_merge.models.head_files import save_heads
from lightning_merge.models.mini_vit import MiniViT
from lightning_merge.modules.make_heads import make_heads
from lightning_merge.modules.zoo import Zoo

TASKS = {"reds": ("dark", "bright"), "shapes": ("bar", "box", "dot")}
CLASSES = {task: sorted(names) for task, names in TASKS.items()}
"""In the order of folders, and so of labels."""
ENCODER = {
    "image_size": 8,
    "width": 16,
    "depth": 1,
    "num_heads": 2,
    "channels": [8, 16],
    "strides": [2, 2],
}
TRAINER = {
    "accelerator": "cpu",
    "devices": 1,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "log_every_n_steps": 1,
}


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """Leave out what the command line leaves out, and how Lightning uses jsonargparse."""
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    for message in NOISE:
        warnings.filterwarnings("ignore", message)


@pytest.fixture(autouse=True)
def no_seed(monkeypatch):
    """Forget the seed of other tests' runs, which processes that are started would take."""
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


def picture(task, label, generator):
    """An 8 x 8 image: its brightness or its shape says the class."""
    pixels = generator.integers(0, 60, (8, 8, 3))
    if task == "reds":
        pixels[..., 0] += 80 + 90 * label
    else:
        area = [np.s_[3:5, :], np.s_[1:7, 1:7], np.s_[3:5, 3:5]][label]
        pixels[area] += 150
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> Path:
    """Image folders of both tasks; tests that change them take a copy."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for task, classes in TASKS.items():
        for split, count in {"train": 20, "test": 7}.items():
            for label, name in enumerate(classes):
                place = folder / task / split / name
                place.mkdir(parents=True)
                for i in range(count):
                    picture(task, label, generator).save(place / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def files(tmp_path_factory, root) -> SimpleNamespace:
    """A random base, two experts some way from it, and the heads of its class means."""
    folder = tmp_path_factory.mktemp("zoo")
    torch.manual_seed(0)
    encoder = MiniViT(**ENCODER)
    base = {name: tensor.clone() for name, tensor in encoder.backbone.state_dict().items()}
    save_checkpoint(base, folder / "base.safetensors")
    generator = torch.Generator().manual_seed(1)
    for task in TASKS:
        expert = {n: t + 0.1 * torch.randn(t.shape, generator=generator) for n, t in base.items()}
        save_checkpoint(expert, folder / f"{task}.safetensors")
    found = SimpleNamespace(
        folder=folder,
        base=str(folder / "base.safetensors"),
        experts=str(folder / "{task}.safetensors"),
        heads=str(folder / "heads.safetensors"),
        expert={task: str(folder / f"{task}.safetensors") for task in TASKS},
    )
    data = MergeDataModule(root=str(root), tasks=list(TASKS))
    data.preprocess = encoder.preprocess
    data.load()
    heads = dict(make_heads(zoo_of(found), encoder, data, list(TASKS)))
    save_heads(heads, found.heads)
    return found


def zoo_of(files) -> Zoo:
    return Zoo(base=files.base, experts=files.experts, heads=files.heads)


@pytest.fixture
def zoo(files) -> Zoo:
    return zoo_of(files)


@pytest.fixture
def encoder() -> MiniViT:
    torch.manual_seed(7)
    return MiniViT(**ENCODER)


@pytest.fixture
def data(root) -> MergeDataModule:
    return MergeDataModule(root=str(root), tasks=list(TASKS), batch_size=8)


@pytest.fixture
def trainer(tmp_path):
    """Make a silent CPU trainer whose run folder is tmp_path / "run"."""

    def make(**options) -> Trainer:
        return Trainer(
            **{
                "accelerator": "cpu",
                "devices": 1,
                "logger": False,
                "enable_checkpointing": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "default_root_dir": str(tmp_path / "run"),
                "max_epochs": 2,
                **options,
            }
        )

    return make


@pytest.fixture
def own_root(root, tmp_path) -> Path:
    """A copy of the image folders that a test may change."""
    return Path(shutil.copytree(root, tmp_path / "own_data"))


@pytest.fixture
def own_files(files, tmp_path) -> SimpleNamespace:
    """A copy of the zoo's files that a test may change."""
    folder = Path(shutil.copytree(files.folder, tmp_path / "own_zoo"))

    def moved(value):
        return str(value).replace(str(files.folder), str(folder))

    return SimpleNamespace(
        folder=folder,
        base=moved(files.base),
        experts=moved(files.experts),
        heads=moved(files.heads),
        expert={task: moved(file) for task, file in files.expert.items()},
    )


def model_of(files, name="StatsMerging", **options) -> dict:
    """The config of a module on the tiny zoo."""
    encoder = {"class_path": "lightning_merge.models.MiniViT", "init_args": ENCODER}
    zoo = {"base": files.base, "experts": files.experts, "heads": files.heads}
    return {
        "class_path": f"lightning_merge.modules.{name}",
        "init_args": {"encoder": encoder, "zoo": zoo, **options},
    }


def write_config(path: Path, files, root, **changes) -> Path:
    """Write the config of a tiny StatsMerging run; `changes` are dotted names in it."""
    config = {
        "seed_everything": 3,
        "model": model_of(files, hidden=8),
        "data": {"root": str(root), "tasks": list(TASKS), "batch_size": 8},
        "trainer": {**TRAINER, "default_root_dir": str(path.parent / "run"), "max_epochs": 3},
    }
    for name, value in changes.items():
        place = config
        *parents, last = name.split("__")
        for parent in parents:
            place = place[parent]
        place[last] = value
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture
def config(tmp_path, files, root):
    """Write config.yaml of a tiny run into tmp_path: config(trainer__max_epochs=1)."""

    def make(files=files, root=root, **changes) -> Path:
        return write_config(tmp_path / "config.yaml", files, root, **changes)

    return make


@pytest.fixture
def run(capsys):
    """Run a command in this process: run("fit", ...) -> exit code, output, errors."""
    from lightning_merge.cli.main import main

    def call(*arguments) -> SimpleNamespace:
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        return SimpleNamespace(code=code, **capsys.readouterr()._asdict())

    return call
