"""Make what a zoo lacks: base, heads and experts, each once, each resumable."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch.utilities import rank_zero_info

from lightning_merge.core.checkpoint import file_hash, open_checkpoint
from lightning_merge.core.errors import InputError
from lightning_merge.data.datamodule import MergeDataModule
from lightning_merge.models.encoder import Encoder
from lightning_merge.models.heads import save_heads
from lightning_merge.modules.make_heads import make_heads
from lightning_merge.modules.zoo import Zoo

Fit = Callable[[list[str]], None]


def prepare(
    zoo: Zoo, encoder: Encoder, encoder_config: dict[str, Any], data: MergeDataModule,
    data_config: dict[str, Any], fit: Fit,
) -> None:  # fmt: skip
    """Make base, heads and experts where they are missing or their inputs changed.

    Files that this function did not make (they carry no fingerprint) are used as they are.

    Args:
        zoo: files and recipes.
        encoder: architecture of the zoo.
        encoder_config: class_path and init_args of the encoder, handed to the recipes.
        data: the tasks.
        data_config: how the tasks were found and divided, handed to the recipes.
        fit: runs `fit` with a list of arguments.

    Raises:
        InputError: a file is missing and no recipe makes it.
    """
    shared = ["--model.encoder", json.dumps(encoder_config)]
    stage = Stage("base", Path(zoo.base), zoo.base_recipe, "zoo.base_recipe")
    stage.make(fit, shared, {"encoder": encoder_config})
    data.preprocess = encoder.preprocess
    data.load()
    digests = {task: data.digest(task) for task in data.tasks}
    base = file_hash(zoo.base)
    _prepare_heads(zoo, encoder, data, {"base": base, **digests})
    heads, known = file_hash(zoo.heads), open_checkpoint(zoo.heads).metadata
    for task in data.tasks:
        path = Path(zoo.expert(task))
        stage = Stage(f"expert of {task}", path, zoo.expert_recipe, "zoo.expert_recipe")
        options = [
            *shared,
            *("--model.base", zoo.base, "--model.heads", zoo.heads),
            *("--data.tasks", json.dumps([task])),
            *(word for k, v in data_config.items() for word in (f"--data.{k}", str(v))),
        ]
        head = known.get(f"fingerprint/{task}", heads)
        stage.make(fit, options, {"base": base, "head": head, "data": digests[task]})


class Stage:
    """One file and the recipe that makes it.

    Args:
        what: for messages.
        path: the file.
        recipe: config of the run that makes it.
        option: name of the option that holds the recipe, for messages.
    """

    def __init__(self, what: str, path: Path, recipe: str | None, option: str) -> None:
        self.what, self.path, self.recipe, self.option = what, path, recipe, option

    def make(self, fit: Fit, options: list[str], inputs: dict[str, Any]) -> None:
        """Run the recipe unless the file is there and was made from the same inputs."""
        if self.recipe is None:
            if not self.path.exists():
                raise InputError(
                    f"the {self.what} is missing: {self.path} is no file and {self.option} is not "
                    "set; give the file or a recipe that makes it"
                )
            return
        if not Path(self.recipe).is_file():
            raise InputError(f"{self.option}={self.recipe!r} is not a file; give a config")
        recipe = yaml.safe_load(Path(self.recipe).read_text())
        mark = fingerprint({"recipe": recipe, **inputs})
        if self.path.exists():
            known = open_checkpoint(self.path).metadata.get("fingerprint", mark)
            if known == mark:
                return
            rank_zero_info(f"{self.what}: inputs changed, making {self.path} again")
        rank_zero_info(f"{self.what}: making {self.path}")
        folder = self.path.with_suffix("")
        fit(
            [
                *("--config", self.recipe, *options),
                *("--model.output", str(self.path)),
                *("--model.metadata", json.dumps({"fingerprint": mark})),
                *("--trainer.default_root_dir", str(folder)),
            ]
        )
        if not self.path.exists():
            raise InputError(f"{self.what}: the run of {self.recipe} ended without {self.path}")


def fingerprint(value: Any) -> str:
    """Return a digest of anything JSON can hold."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _prepare_heads(
    zoo: Zoo, encoder: Encoder, data: MergeDataModule, inputs: dict[str, str]
) -> None:
    """Make the file of heads unless every task's head in it has the same inputs."""
    marks = {
        f"fingerprint/{task}": fingerprint(
            [inputs["base"], inputs[task], zoo.make_heads, zoo.head_scale, str(zoo.text)]
        )
        for task in data.tasks
    }
    path = Path(zoo.heads)
    if path.exists():
        known = open_checkpoint(path).metadata
        own = any(key.startswith("fingerprint/") for key in known)
        if not own or marks.items() <= known.items():
            return
        rank_zero_info(f"heads: inputs changed, making {path} again")
    save_heads(make_heads(zoo, encoder, data), path, metadata=marks)


def plain(value: Any) -> Any:
    """Return a config value as dicts, lists and scalars."""
    if isinstance(value, Namespace):
        return {k: plain(v) for k, v in value.as_dict().items()}
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value
