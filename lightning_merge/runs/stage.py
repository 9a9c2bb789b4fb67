"""One file of a zoo and its recipe: whether it exists, was given by the user, or is stale."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_merge.core.checkpoints import hub
from lightning_merge.core.checkpoints.checkpoint import open_checkpoint
from lightning_merge.core.checkpoints.files import locked
from lightning_merge.core.errors import InputError
from lightning_merge.core.progress import detail, skipped, stage
from lightning_merge.data.datamodule import MergeDataModule
from lightning_merge.models.encoder import Encoder
from lightning_merge.modules.zoo import misfit
from lightning_merge.runs.recipe import Config, Fit, Recipe


class Stage:
    """One file, and the run that makes it when it is missing or its inputs have changed.

    A file without a fingerprint was not made by a recipe: it is the user's, and used as it is.

    Args:
        what: What the file is, for messages.
        place: Option that names the file, for messages.
        file: Path of the file; without a recipe, it may also be a name on the Hub.
        recipe: Path of the recipe's config, if there is one.
        option: Option that names the recipe, for messages.

    Examples:
        >>> stage = Stage("base", "zoo.base", "base.safetensors", None, "zoo.base_recipe")
        >>> stage.exists(), stage.is_made({})
        (False, False)
    """

    def __init__(self, what: str, place: str, file: str, recipe: str | None, option: str) -> None:
        self.what, self.place, self.file, self.option = what, place, file, option
        self.recipe = None if recipe is None else Recipe(recipe, option)

    @property
    def path(self) -> Path:
        """The file as a path."""
        return Path(self.file)

    def exists(self) -> bool:
        """Whether the file exists locally or on the Hub."""
        return hub.exists(self.file, plain=self.recipe is None)

    def check(self, encoder: Encoder) -> Iterator[str]:
        """Check that the file exists and is readable, or that a recipe can make it.

        Yields:
            Why a file given by the user does not fit the encoder.

        Raises:
            InputError: Neither is the case.
        """
        if self.exists():
            with hub.given_as(self.place):
                if self.is_given():
                    yield from misfit(encoder, self.what, self.file)
        elif self.recipe is None:
            raise InputError(
                f"the {self.what} is missing: {self.path} does not exist and {self.option} is "
                "not set; give the file or a recipe that makes it"
            )
        else:
            self._check_alone(self.recipe)
        if self.recipe is not None:
            _ = self.recipe.config

    def _check_alone(self, recipe: Recipe) -> None:
        try:
            recipe.check_alone()
        except InputError as fault:
            raise InputError(
                f"the {self.what} is missing: {self.path} does not exist, and {fault}; make the "
                f"file first by a run of its own: fit --config {recipe.path} "
                f"--model.output {self.path}"
            ) from None

    def is_given(self) -> bool:
        """Whether the file exists and was supplied by the user."""
        if not self.exists():
            return False
        metadata = open_checkpoint(self.file).metadata  # raises if it cannot be fetched
        return self.recipe is None or "fingerprint" not in metadata

    def is_made(self, inputs: Config) -> bool:
        """Whether the file exists and was made from these inputs, or supplied by the user."""
        if not self.exists() or self.is_given():
            return self.exists()
        return open_checkpoint(self.file).metadata["fingerprint"] == self._fingerprint(inputs)

    def images(self) -> dict[str, str] | None:
        """Return the digests of images the recipe itself names; None if they no longer exist.

        Raises:
            InputError: The recipe's data cannot be read.
        """
        options = {} if self.recipe is None else self.recipe.section("data")
        roots = [options.get("root"), *(options.get("roots") or {}).values()]
        if not any(roots):
            return {}
        if not all(Path(root).exists() for root in roots if root):
            return None
        try:
            data = MergeDataModule(**options)
        except TypeError as fault:
            raise InputError(f"{self.recipe}: data: {fault}") from None
        data.load(test=None)
        return {task: data.digest(task) for task in data.tasks}

    def make(self, fit: Fit, options: Config, inputs: Config) -> None:
        """Run the recipe unless the file is up to date; wait if another run is making it.

        Args:
            fit: Runs `fit` with a config.
            options: Options of the recipe other than those for its output.
            inputs: What the file depends on besides the recipe; anything JSON can hold.

        Raises:
            InputError: The recipe fails.
        """
        if self.is_made(inputs):
            if self.recipe is not None:
                skipped(self.what, "there already")
            return
        assert self.recipe is not None  # otherwise `check` has found the file
        self._check_alone(self.recipe)
        with locked(self.path):
            if not self.is_made(inputs):  # another run may have made it meanwhile
                self._run(self.recipe, fit, options, inputs)

    def _run(self, recipe: Recipe, fit: Fit, options: Config, inputs: Config) -> None:
        again = "again, as its inputs changed" if self.path.exists() else ""
        detail(f"{self.what}: making {self.path} {again}".rstrip())
        where = {
            "model.output": str(self.path),
            "model.overwrite": True,
            "model.metadata": {"fingerprint": self._fingerprint(inputs)},
            "trainer.default_root_dir": str(self.path.with_suffix("")),
        }
        with stage(self.what) as say:
            say(again)
            recipe.run(fit, {**options, **where})
        if not self.path.exists():
            raise InputError(f"{self.what}: the run of {recipe.path} ended without {self.path}")

    def _fingerprint(self, inputs: Config) -> str:
        recipe = None if self.recipe is None else self.recipe.config
        return fingerprint({"recipe": recipe, **inputs})


def fingerprint(value: Any) -> str:
    """Return a digest of anything JSON can hold.

    Examples:
        >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
        True
    """
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
