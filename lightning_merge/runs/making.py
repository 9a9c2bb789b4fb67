"""Make the missing files of a zoo (base, heads, experts, multi-task network), resumably."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from lightning_merge.core.checkpoints.checkpoint import file_hash
from lightning_merge.core.checkpoints.names import enumerate_names
from lightning_merge.core.errors import InputError
from lightning_merge.core.progress import stages_of
from lightning_merge.data.datamodule import MergeDataModule
from lightning_merge.models.encoder import Encoder
from lightning_merge.modules.zoo import Zoo
from lightning_merge.runs.heads import HEADS, ZooHeads
from lightning_merge.runs.recipe import Config, Fit
from lightning_merge.runs.stage import Stage

TEACHERS = "teachers'"
"""Word before the names of their stages."""


class ZooMaker:
    """Makes the files of a zoo that are missing or whose inputs changed, by the zoo's recipes.

    Files without a fingerprint were not made by a recipe and are used as they are. Teachers are
    made first, after their own base and heads. Recipes run in one process on one device,
    regardless of how many the run itself uses.

    Args:
        zoo: Files and recipes.
        encoder: Architecture of the zoo.
        config: Options of "encoder" (class_path and init_args, passed to the recipes) and "zoo".
        tasks: Tasks that have experts.
        out_of_domain: Data sets that need a head only.

    Examples:
        >>> from lightning_merge.models import MiniViT
        >>> zoo = Zoo("base.safetensors", "{task}.safetensors", "heads.safetensors")
        >>> config = {"encoder": {"class_path": "MiniViT"}}
        >>> maker = ZooMaker(zoo, MiniViT(), config, ["mnist", "dtd"])
        >>> [stage.what for stage in maker.stages]
        ['base', 'expert of mnist', 'expert of dtd']
        >>> maker.check()
        Traceback (most recent call last):
            ...
        lightning_merge.core.errors.InputError: the base is missing: ...
    """

    def __init__(
        self,
        zoo: Zoo,
        encoder: Encoder,
        config: Config,
        tasks: Sequence[str],
        out_of_domain: Sequence[str] = (),
    ) -> None:
        self.zoo, self.encoder, self.config, self.tasks = zoo, encoder, config, tuple(tasks)
        self.heads = ZooHeads(zoo, [*tasks, *out_of_domain])
        self.base = Stage("base", "zoo.base", zoo.base, zoo.base_recipe, "zoo.base_recipe")
        recipe, option = zoo.expert_recipe, "zoo.expert_recipe"
        self.experts = {
            task: Stage(f"expert of {task}", "zoo.experts", zoo.expert(task), recipe, option)
            for task in tasks
        }
        recipe, option = zoo.multi_task_recipe, "zoo.multi_task_recipe"
        self.multi_task = (
            []
            if zoo.multi_task is None
            else [Stage("multi-task network", "zoo.multi_task", zoo.multi_task, recipe, option)]
        )
        self.teachers = None
        if (teachers := zoo.teachers) is not None:
            theirs = config["zoo"]["teachers"]
            with _of_teachers():
                self.teachers = ZooMaker(teachers.zoo, teachers.encoder, theirs, tasks)

    @property
    def stages(self) -> list[Stage]:
        """The stages of all files that recipes make."""
        return [self.base, *self.experts.values(), *self.multi_task]

    def planned(self) -> list[str]:
        """Return the names of the stages that `fill` may have, in order."""
        own = [stage.what for stage in self.stages if stage.recipe is not None]
        if not self.heads.are_given():
            own.insert(own[:1] == [self.base.what], HEADS)
        theirs = self.teachers.planned() if self.teachers else ()
        return [*(f"{TEACHERS} {what}" for what in theirs), *own]

    def check(self) -> None:
        """Check that every file exists and fits, or has a recipe; the teachers' files too.

        Raises:
            InputError: A file is missing and no recipe makes it on one device, a file cannot be
                read or belongs to another architecture, or students would overwrite their
                teachers.
        """
        if self.teachers is not None:
            self._check_teachers(self.teachers)
        if problems := [text for stage in self.stages for text in stage.check(self.encoder)]:
            raise InputError("\n".join(problems))
        self.heads.check()

    def _check_teachers(self, teachers: "ZooMaker") -> None:
        if shared := self.zoo.files(self.tasks) & teachers.zoo.files(self.tasks):
            names = enumerate_names(sorted(map(str, shared)))
            raise InputError(
                f"zoo.teachers.zoo has files of the zoo itself: {names}; "
                "give students other names than their teachers"
            )
        with _of_teachers():
            teachers.check()

    def fill(self, data: MergeDataModule, options: Config, fit: Fit) -> None:
        """Make the base, heads, experts and multi-task network that are missing or stale.

        Call `check` first.

        Args:
            data: The tasks.
            options: Data options by name; recipes receive those that determine the tasks and
                their splits.
            fit: Runs `fit` with a config.

        Raises:
            InputError: Files do not fit, or a recipe fails.
        """
        division = {f"data.{name}": options[name] for name in data.dividing}
        self._fill(data, {**division, "data.image_cache": data.kept.place}, fit)
        data.preprocess = None  # forget the decoded train images

    def _fill(self, data: MergeDataModule, division: Config, fit: Fit) -> None:
        if self.teachers is not None:
            with stages_of(TEACHERS):
                self.teachers._fill(data, division, fit)
        data.preprocess = self.encoder.preprocess
        data.load()
        self.heads.check_fit(data, self.encoder)
        self._make_base(fit, division)
        # Check existing files before making anything that takes long.
        given = [task for task, stage in self.experts.items() if stage.is_given()]
        self._check_fit(given, multi_task=any(stage.is_given() for stage in self.multi_task))
        images = {task: data.digest(task) for task in self.heads.tasks}
        base = file_hash(self.zoo.base)
        self.heads.make(self.encoder, data, {"base": base, **images})
        inputs = {task: self._inputs(task, base, images[task]) for task in data.tasks}
        of_all = {"tasks": {t: [inputs[t]["head"], images[t]] for t in data.seen}, "base": base}
        made = [t for t, s in self.experts.items() if t not in given and s.is_made(inputs[t])]
        self._check_fit(made, multi_task=all(stage.is_made(of_all) for stage in self.multi_task))
        options = {
            "model.encoder": self.config["encoder"],
            "model.base": self.zoo.base,
            "model.heads": self.zoo.heads,
            **division,
        }
        if data.division.duplicates == "drop":
            options["data.apart_from"] = [*data.apart_from]
        for task, stage in self.experts.items():
            own = {**options, **self._seed, **self._teacher(task), "data.tasks": [task]}
            stage.make(fit, own, inputs[task])
        for stage in self.multi_task:
            stage.make(fit, {**options, "data.tasks": [*data.seen]}, of_all)

    def _make_base(self, fit: Fit, division: Config) -> None:
        images = self.base.images()
        if images is not None or not self.base.exists():  # without its images it cannot be remade
            inputs = {"encoder": self.config["encoder"], **(images or {})}
            place = {"data.image_cache": division["data.image_cache"]}
            self.base.make(fit, {"model.encoder": self.config["encoder"], **place}, inputs)

    def _check_fit(self, tasks: Sequence[str], *, multi_task: bool) -> None:
        self.zoo.open(self.encoder, tasks, minimum=0, multi_task=multi_task)

    def _inputs(self, task: str, base: str, images: str) -> dict[str, Any]:
        """Return what the expert of a task depends on besides its recipe."""
        inputs = {"base": base, "head": self.heads.mark(task), "data": images, **self._seed}
        if self.encoder.preprocess.kind == "texts":  # whose options heads do not all depend on
            inputs["encoder"] = self.config["encoder"]
        if self.teachers is None:
            return inputs
        teacher = {
            "encoder": self.teachers.config["encoder"],
            "weights": file_hash(self.teachers.zoo.expert(task)),
            "head": self.teachers.heads.mark(task),
        }
        return {**inputs, "teacher": teacher}

    @property
    def _seed(self) -> Mapping[str, int]:
        """Return the recipe option of the experts' seed; empty if the recipe has its own."""
        seed = self.zoo.expert_seed
        return {} if seed is None else {"seed_everything": seed}

    def _teacher(self, task: str) -> Mapping[str, Any]:
        """Return the recipe option that names a student's teacher; empty without teachers."""
        if self.teachers is None:
            return {}
        teacher = {
            "encoder": self.teachers.config["encoder"],
            "weights": self.teachers.zoo.expert(task),
            "heads": self.teachers.zoo.heads,
        }
        return {"model.teacher": teacher}


@contextmanager
def _of_teachers() -> Iterator[None]:
    """Say that what is wrong is wrong with the teachers' zoo."""
    try:
        yield
    except InputError as fault:
        raise InputError(f"zoo.teachers: {fault}") from None
