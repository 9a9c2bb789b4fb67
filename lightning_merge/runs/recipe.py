"""Recipes: `fit` configs that each make one file of weights."""

import copy
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from lightning_merge.core.checkpoints.files import read_text
from lightning_merge.core.errors import InputError

Config = Mapping[str, Any]
"""Options of a command by name, as dicts, lists and scalars."""
Fit = Callable[[Config], object]
"""Runs `fit` with a config in this process only."""

ON_ONE_DEVICE: dict[str, tuple[Any, ...]] = {
    "trainer.devices": (1, "1", [0]),
    "trainer.num_nodes": (1,),
    "trainer.strategy": ("auto",),
}
"""Trainer options -> the values that mean one device; recipes run with the first of each."""


class Recipe:
    """A config file of `fit` whose run writes one file of weights.

    Args:
        path: Path of the config file.
        option: Command-line option that names it, for messages.

    Examples:
        >>> from pathlib import Path
        >>> from tempfile import mkdtemp
        >>> path = Path(mkdtemp()) / "expert.yaml"
        >>> _ = path.write_text("{model: FineTune, trainer: {max_epochs: 3}}")
        >>> recipe = Recipe(str(path), "zoo.expert_recipe")
        >>> recipe.overridden({"model.output": "mnist.safetensors"})["model"]
        {'class_path': 'FineTune', 'init_args': {'output': 'mnist.safetensors'}}
    """

    def __init__(self, path: str, option: str) -> None:
        self.path, self.option = path, option

    def __str__(self) -> str:
        return f"{self.option}={self.path!r}"

    @cached_property
    def config(self) -> Any:
        """The content of the file.

        Raises:
            InputError: It cannot be read, or is not YAML.
        """
        try:
            return yaml.safe_load(read_text(self.path))
        except (OSError, UnicodeError, yaml.YAMLError) as fault:
            raise InputError(f"{self} cannot be read as a config: {fault}") from None

    def section(self, name: str) -> dict[str, Any]:
        """Return the options of "model", "data" or "trainer"; a bare class name as class_path.

        Raises:
            InputError: The file cannot be read.
        """
        value = (self.config or {}).get(name) or {}
        if not isinstance(value, str):
            return copy.deepcopy(dict(value))
        if (file := Path(self.path).parent / value).is_file():  # a section in a file of its own
            return Recipe(str(file), f"{name} of {self}").config or {}
        return {"class_path": value}

    def check_alone(self) -> None:
        """Check that the recipe is for one device; several would change the batch size.

        Raises:
            InputError: It asks for several devices.
        """
        given = {f"trainer.{key}": value for key, value in self.section("trainer").items()}
        many = {
            name: given[name]
            for name, one in ON_ONE_DEVICE.items()
            if name in given and given[name] not in ("auto", *one)
        }
        if many:
            options = ", ".join(f"{name}={value!r}" for name, value in many.items())
            raise InputError(f"{self} with {options} is a recipe for several devices")

    def overridden(self, options: Config) -> dict[str, Any]:
        """Return the config with some options overridden.

        Args:
            options: Values by dotted name, as on the command line: "model.output" is an option of
                the model's class, "seed_everything" one of the run.

        Raises:
            InputError: The file cannot be read.
        """
        config = dict(self.config or {})
        sections = {name: self.section(name) for name in ("model", "data", "trainer")}
        for name, value in options.items():
            section, _, option = name.rpartition(".")
            target = sections.get(section, config)
            if section == "model":
                target["init_args"] = target.get("init_args") or {}
                target = target["init_args"]
            target[option] = value
        return {**config, **sections}

    def run(self, fit: Fit, options: Config) -> None:
        """Run the recipe on one device with some options overridden."""
        alone = {name: values[0] for name, values in ON_ONE_DEVICE.items()}
        fit(self.overridden({**options, **alone}))
