"""A grid of runs: suites, rows and seeds, each cell of which is one `fit`."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lightning_merge.core.checkpoints.files import read_text
from lightning_merge.core.checkpoints.names import enumerate_names
from lightning_merge.core.errors import InputError
from lightning_merge.runs.suite import Config, Suite, laid, mapping

START = "start"
"""Name of a module that learns nothing; its row is left out."""
STARTS = (START, f"{START}_not_recalibrated")
"""Names of the rows of such a module."""
PLACE = "{task}"
_PRUNE = {"class_path": "lightning_merge.callbacks.PruneTaskVectors"}
_DRAW = {"class_path": "lightning_merge.callbacks.CoefficientMap"}
_MERGE = "lightning_merge.callbacks.MergeCallback"
_OWN = ("seed_everything", "trainer.default_root_dir", "model.zoo.experts", "model.zoo.expert_seed")
"""Options of `fit` that belong to a cell."""


@dataclass(frozen=True)
class Variant:
    """What one `fit` has of its own: the row that it learns, or rows that it merges.

    Attributes:
        name: Row of the network that is learned, and folder of its runs.
        config: What is laid over the suite's config.
        over: Which of the suite's configs that is, without .yaml; None for the suite's first.
        longer: How many times the epochs of other variants it gets, for as many steps with more or
            fewer examples.

    Examples:
        >>> free = Variant("free", {"model": {"init_args": {"learner": "free"}}})
        >>> free.rows
        ['free']
    """

    name: str
    config: Config
    over: str | None = None
    longer: float = 1.0

    @property
    def callbacks(self) -> list[Config]:
        """The callbacks of the config.

        Raises:
            InputError: They are not a list of mappings.
        """
        found = self._part("trainer").get("callbacks") or []
        if not isinstance(found, list):
            raise InputError(f"{self.name}: trainer.callbacks={found!r}: give a list")
        return [mapping(one, f"{self.name}: trainer.callbacks") for one in found]

    def _part(self, name: str) -> Config:
        """Return a section of the config."""
        return mapping(self.config.get(name, {}), f"{self.name}: {name}")

    @property
    def learned(self) -> str:
        """The name of the network that is learned, or START.

        Raises:
            InputError: It is neither that nor the row's.
        """
        options = mapping(self._part("model").get("init_args", {}), f"{self.name}: init_args")
        found = str(options.get("name", self.name))
        if found not in (self.name, START):
            raise InputError(
                f"{self.name}: model.init_args.name={found!r}: a row has the name of its network; "
                f"leave it out, or give {START!r} if nothing is learned"
            )
        return found

    @property
    def rows(self) -> list[str]:
        """The names of the merged networks that it makes."""
        given = (callback.get("init_args", {}).get("name") for callback in self.callbacks)
        merged = [name for name in given if name]
        return merged if self.learned == START else [self.name, *merged]

    def behind_lwptv(self) -> "Variant":
        """Return the variant with LwPTV's mask, which precedes any trimming (Algorithm 1)."""
        pruned = {"trainer": {"callbacks": [_PRUNE, *self.callbacks]}}
        name = f"{self.name}_lwptv"
        return Variant(name, laid(self.config, pruned), self.over, self.longer)

    def overlay(self, suite: Suite) -> Config:
        """Return the whole config to lay over the suite's file."""
        name = self.over or suite.config
        below = suite.whole(name)
        trainer, options = below.get("trainer", {}), below.get("model", {}).get("init_args", {})
        default: Config = {"model": {"init_args": {"name": self.name}}}
        own_module = "class_path" in self._part("model")
        if self.longer != 1:
            default["trainer"] = self._longer(trainer)
        if self.longer != 1 and (step := options.get("step_size")) and not own_module:
            default["model"]["init_args"]["step_size"] = round(self.longer * step)
        drawn = [] if self.learned == START else [_DRAW]
        callbacks = {"trainer": {"callbacks": [*self.callbacks, *drawn]}}
        own = suite.over.get(name, {})
        if own_module:  # options of the suite's module are not those of another
            own = {key: value for key, value in own.items() if key != "model"}
        return laid(laid(laid(own, default), self.config), callbacks)

    def _longer(self, trainer: Config) -> Config:
        """Return when training ends, of what the suite's config says."""
        for name in ("max_epochs", "max_steps"):
            if (end := trainer.get(name) or -1) > 0:
                return {name: max(1, round(self.longer * end))}
        raise InputError(
            f"{self.name}: longer={self.longer} multiplies trainer.max_epochs or max_steps, and "
            "the suite's config has neither"
        )


def variants_of(rows: Mapping[str, Config | None], shared: Config | None = None) -> list[Variant]:
    """Return the variants of rows: each one's config, and `over` and `longer`.

    Args:
        rows: Row -> its config; none for the suite's as it is.
        shared: What all of them are laid over.

    Examples:
        >>> [one] = variants_of({"ada": {"over": "adamerging", "data": {"batch_size": 4}}})
        >>> one.over, one.config
        ('adamerging', {'data': {'batch_size': 4}})
    """
    found = []
    for name, given in rows.items():
        own = dict(mapping(given, f"rows.{name}"))
        options = {key: own.pop(key) for key in ("over", "longer") if key in own}
        if not isinstance(options.get("longer", 1), int | float) or options.get("longer", 1) <= 0:
            raise InputError(f"rows.{name}.longer={options['longer']!r}: give a number above 0")
        found.append(Variant(name, laid(shared or {}, own), **options))
    return found


def read_group(file: Path) -> list[Variant]:
    r"""Return the variants of a config; one without any is its own only variant.

    Args:
        file: A config to lay over one of a suite, which may have a section ``variants``.

    Raises:
        InputError: It does not exist or is not YAML.

    Examples:
        >>> file = Path("group.yaml")
        >>> _ = file.write_text("data: {batch_size: 4}\nvariants: {short: {}, long: {longer: 2}}")
        >>> [(variant.name, variant.longer) for variant in read_group(file)]
        [('short', 1.0), ('long', 2)]
    """
    if not file.is_file():
        raise InputError(f"groups: {file} does not exist; give a config, such as those of claims")
    try:
        config = dict(mapping(yaml.safe_load(read_text(file)), str(file)))
    except yaml.YAMLError as fault:
        raise InputError(f"groups: {file} is not YAML: {fault}") from None
    variants = mapping(config.pop("variants", {file.stem: {}}), f"{file}: variants")
    return variants_of(variants, config)


def of_methods(
    methods: Mapping[str, Config], transforms: Mapping[str, Sequence[Any]]
) -> Iterator[Variant]:
    """Yield a variant for each method alone, and for each with each of the transforms in front.

    Args:
        methods: Row -> options of `MergeCallback`: `method` and, if it has one, `grid`.
        transforms: End of the row's name -> transforms, which come before the method's own.

    Raises:
        InputError: A method has no `method`.

    Examples:
        >>> methods = {"ties": {"method": {"class_path": "Ties"}}}
        >>> [v.name for v in of_methods(methods, {"lwptv": [{"class_path": "LwPTV"}]})]
        ['ties', 'ties_lwptv']
    """
    for name, given in methods.items():
        if not isinstance(given.get("method"), dict):
            raise InputError(f"methods.{name}={given}: give method: {{class_path: ...}}, and grid")
        method = {**given["method"]}
        method["init_args"] = mapping(method.get("init_args"), f"methods.{name}.method.init_args")
        for end, first in {"": [], **transforms}.items():
            before = [*first, *method["init_args"].get("transforms", [])]
            options = {**method["init_args"], **({"transforms": before} if before else {})}
            row = f"{name}_{end}" if end else name
            callback = {**given, "name": row, "method": {**method, "init_args": options}}
            yield Variant(
                row,
                {
                    "model": {"init_args": {"name": START}},
                    "trainer": {
                        "max_epochs": 0,
                        "callbacks": [{"class_path": _MERGE, "init_args": callback}],
                    },
                },
            )


def check_rows(variants: Sequence[Variant]) -> list[str]:
    """Return the rows of all variants.

    Raises:
        InputError: There are none, or several variants have the same name or make the same row.

    Examples:
        >>> check_rows([Variant("sml", {}), Variant("free", {})])
        ['sml', 'free']
    """
    rows = Counter(row for variant in variants for row in variant.rows)
    if not rows:
        raise InputError("rows, methods and groups are empty: give at least one row")
    names = Counter(variant.name for variant in variants)
    if same := [name for name, count in names.items() if count > 1]:
        raise InputError(
            f"several variants have the name {enumerate_names(same)}, which names their folder; "
            "rename them, or give fewer groups"
        )
    if twice := [row for row, count in rows.items() if count > 1]:
        raise InputError(
            f"several variants make the row {enumerate_names(twice)}; rename them, or give fewer "
            "groups"
        )
    return [*rows]


@dataclass(frozen=True)
class Cell:
    """One `fit` of a grid.

    Attributes:
        suite: Name of the suite.
        variant: What it has of its own.
        seed: Seed of the run.
        folder: Its run folder; beside it are its config and what it printed.

    Examples:
        >>> Cell("mini", Variant("sml", {}), 1, Path("runs/mini/sml-seed1")).log.name
        'sml-seed1.log'
    """

    suite: str
    variant: Variant
    seed: int
    folder: Path

    @property
    def log(self) -> Path:
        """What the run printed."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def config(self) -> Path:
        """What is laid over the suite's config."""
        return self.folder.with_name(f"{self.folder.name}.yaml")

    def arguments(self, suite: Suite, own_experts: bool) -> list[str]:
        """Return the arguments of the command line.

        Args:
            suite: The suite.
            own_experts: Whether experts are fine-tuned with the seed of the run.

        Raises:
            InputError: The suite's config does not exist, or has no experts of one recipe.
        """
        name = self.variant.over or suite.config
        if taken := [key for key in suite.options if key in _OWN]:
            raise InputError(f"options: {taken[0]} belongs to each cell; leave it out")
        options = {
            "seed_everything": self.seed,
            "trainer.default_root_dir": str(self.folder),
            "trainer.enable_progress_bar": False,
            "report": False,  # a page of every cell would take its time
            **(experts_of(suite, name, self.seed, self.variant) if own_experts else {}),
            **suite.options,
        }
        words = [w for key, value in options.items() for w in (f"--{key}", _word(value))]
        return ["fit", "--config", str(suite.file(name)), "--config", str(self.config), *words]


def experts_of(suite: Suite, name: str, seed: int, variant: Variant) -> dict[str, Any]:
    """Return the options of `fit` for experts that are fine-tuned with a run's seed.

    Args:
        suite: The suite.
        name: Which of its configs.
        seed: The seed.
        variant: What is laid over it.

    Raises:
        InputError: The config has no experts that a recipe makes from the base, one file per task,
            or the variant has experts of its own.

    Examples:
        >>> zoo = {"experts": "runs/experts/{task}.safetensors", "expert_recipe": "expert.yaml"}
        >>> _ = Path("sml.yaml").write_text(json.dumps({"model": {"init_args": {"zoo": zoo}}}))
        >>> experts_of(Suite("."), "sml", 2, Variant("sml", {}))["model.zoo.experts"]
        'runs/experts-seed2/{task}.safetensors'
    """
    zoo = suite.whole(name).get("model", {}).get("init_args", {}).get("zoo", {})
    experts, recipe = zoo.get("experts"), zoo.get("expert_recipe")
    own = variant.config.get("model", {}).get("init_args", {}).get("zoo", {})
    if "experts" in own or "expert_recipe" in own:
        raise InputError(f"own_experts=True: {variant.name} has experts of its own; leave one out")
    known = isinstance(experts, str) and PLACE in experts and isinstance(recipe, str)
    if not known or zoo.get("teachers"):
        raise InputError(
            f"own_experts=True: {suite.file(name)} has no experts of one recipe, one file a task; "
            "give own_experts=False, or other rows"
        )
    before, _, after = experts.partition(PLACE)
    of_seed = f"{before.rstrip('/')}-seed{seed}/{PLACE}{after}"
    return {"model.zoo.expert_seed": seed, "model.zoo.experts": of_seed}


def _word(value: Any) -> str:
    """Return a value as a word of the command line."""
    return value if isinstance(value, str) else json.dumps(value)
