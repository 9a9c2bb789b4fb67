"""Make what a zoo lacks: base, heads, experts, a multi-task network; each once and resumable."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities import rank_zero_info

from lightning_merge.core.checkpoints import hub
from lightning_merge.core.checkpoints.checkpoint import file_hash, open_checkpoint
from lightning_merge.core.checkpoints.files import read_text
from lightning_merge.core.checkpoints.names import enumerate_names
from lightning_merge.core.errors import InputError
from lightning_merge.data.datamodule import MergeDataModule
from lightning_merge.data.tasks import task_spec
from lightning_merge.models.encoder import Encoder
from lightning_merge.models.heads import Head, load_heads, save_heads
from lightning_merge.modules.heads import by_task, fitting_heads, head_file
from lightning_merge.modules.make_heads import make_heads
from lightning_merge.modules.zoo import Zoo, misfit

Fit = Callable[[list[str]], object]

ON_ONE_DEVICE: dict[str, tuple[Any, ...]] = {
    "devices": (1, "1", [0]),
    "num_nodes": (1,),
    "strategy": ("auto",),
}
"""Options of a trainer that has one device, what stages run with in front."""

_MADE = "make_heads"
"""Under what metadata of heads say how they were made."""


def check(zoo: Zoo, encoder: Encoder, tasks: Sequence[str]) -> None:
    """Check that base and experts are there and fit, or recipes for them; teachers too.

    Raises:
        InputError: A file is missing and no recipe makes it on one device, one is unreadable or
            of another architecture, or students would be written over their teachers.
    """
    if zoo.teachers is not None:
        if shared := zoo.files(tasks) & zoo.teachers.zoo.files(tasks):
            names = enumerate_names(sorted(map(str, shared)))
            raise InputError(
                f"zoo.teachers.zoo has files of the zoo itself: {names}; "
                "give students other names than their teachers"
            )
        try:
            check(zoo.teachers.zoo, zoo.teachers.encoder, tasks)
        except InputError as fault:
            raise InputError(f"zoo.teachers: {fault}") from None
    if problems := [
        text
        for stage in (*_stages(zoo, tasks), *_multi_task_stages(zoo))
        for text in stage.check(encoder)
    ]:
        raise InputError("\n".join(problems))
    _check_heads(zoo)
    for task in tasks if by_task(zoo.heads) else ():
        if not hub.exists(file := head_file(zoo.heads, task)):
            raise InputError(
                f"zoo.heads={zoo.heads!r}: the head of {task!r} is missing, {file} does not exist; "
                "give it, or one path for all tasks, where heads are made"
            )


def fill(
    zoo: Zoo, encoder: Encoder, config: Mapping[str, Any], data: MergeDataModule, fit: Fit
) -> None:
    """Make base, heads, experts and multi-task network where they lack or their inputs changed.

    `check` has passed. Files that this function did not make (they carry no fingerprint) are
    used as they are. Teachers come first, their own base and heads before them. It runs in one
    process, on one device, however many the run has.

    Args:
        zoo: Files and recipes.
        encoder: Architecture of the zoo.
        config: Of "encoder" (class_path and init_args, handed to the recipes), "zoo" and "data".
        data: The tasks.
        fit: Runs `fit` with a list of arguments.

    Raises:
        InputError: Files do not fit, or a recipe fails.
    """
    _prepare(zoo, encoder, config, data, {key: config["data"][key] for key in data.dividing}, fit)
    data.preprocess = None  # forget the decoded train images


def _prepare(
    zoo: Zoo, encoder: Encoder, config: Mapping[str, Any], data: MergeDataModule,
    data_config: dict[str, Any], fit: Fit,
) -> None:  # fmt: skip
    if zoo.teachers is not None:
        theirs = config["zoo"]["teachers"]
        _prepare(zoo.teachers.zoo, zoo.teachers.encoder, theirs, data, data_config, fit)
    shared = ["--model.encoder", json.dumps(config["encoder"])]
    base_stage, *others = _stages(zoo, data.tasks)
    stages = dict(zip(data.tasks, others, strict=True))
    data.preprocess = encoder.preprocess
    data.load()
    if _heads_are_given(zoo):
        fitting_heads(zoo.heads, data, encoder)
    digests = {task: data.digest(task) for task in data.tasks}
    images = base_stage.images()
    if images is not None or not base_stage.exists():  # else there is nothing to remake it of
        base_stage.make(fit, shared, {"encoder": config["encoder"], **(images or {})})
    # What is there already is checked before anything is made that takes long.
    together = _multi_task_stages(zoo)
    given = [task for task, stage in stages.items() if stage.is_given()]
    zoo.open(encoder, given, minimum=0, multi_task=any(s.is_given() for s in together))
    base = file_hash(zoo.base)
    _prepare_heads(zoo, encoder, data, {"base": base, **digests})
    inputs = {
        task: {
            "base": base,
            "head": _mark_of_head(zoo, task),
            "data": digests[task],
            **_mark_of_teacher(zoo, config, task),
        }
        for task in data.tasks
    }
    made = [t for t, stage in stages.items() if t not in given and stage.is_made(inputs[t])]
    of_all = {"tasks": {t: [inputs[t]["head"], digests[t]] for t in data.seen}, "base": base}
    zoo.open(encoder, made, minimum=0, multi_task=all(s.is_made(of_all) for s in together))
    heads = zoo.heads if isinstance(zoo.heads, str) else json.dumps(zoo.heads)
    shared += ["--model.base", zoo.base, "--model.heads", heads]
    shared += _options_of_data(data_config)
    for task, stage in stages.items():
        teacher = _options_of_teacher(zoo, config, task)
        stage.make(fit, [*shared, *teacher, "--data.tasks", json.dumps([task])], inputs[task])
    for stage in together:
        stage.make(fit, [*shared, "--data.tasks", json.dumps(data.seen)], of_all)


def _options_of_data(config: dict[str, Any]) -> list[str]:
    """Return the options that tell a recipe how the tasks were found and divided."""
    texts = {key: v if isinstance(v, str) else json.dumps(v) for key, v in config.items()}
    return [word for key, text in texts.items() for word in (f"--data.{key}", text)]


def _mark_of_head(zoo: Zoo, task: str) -> str:
    """Return the fingerprint of a task's head, or the hash of its file where a user has made it."""
    file = head_file(zoo.heads, task)
    return _marks(file).get(f"fingerprint/{task}") or file_hash(file)


def _mark_of_teacher(zoo: Zoo, config: Mapping[str, Any], task: str) -> dict[str, Any]:
    """Return what a student depends on of its teacher."""
    if zoo.teachers is None:
        return {}
    known = {
        "encoder": config["zoo"]["teachers"]["encoder"],
        "weights": file_hash(zoo.teachers.zoo.expert(task)),
        "head": _mark_of_head(zoo.teachers.zoo, task),
    }
    return {"teacher": known}


def _options_of_teacher(zoo: Zoo, config: Mapping[str, Any], task: str) -> list[str]:
    """Return the options that name a student's teacher to its recipe."""
    if zoo.teachers is None:
        return []
    teacher = {
        "encoder": config["zoo"]["teachers"]["encoder"],
        "weights": zoo.teachers.zoo.expert(task),
        "heads": zoo.teachers.zoo.heads,
    }
    return ["--model.teacher", json.dumps(teacher)]


def _stages(zoo: Zoo, tasks: Sequence[str]) -> "list[Stage]":
    """Return the stage of the base and those of the experts."""
    experts = [
        Stage(
            f"expert of {t}", zoo.expert(t), zoo.expert_recipe, "zoo.expert_recipe", "zoo.experts"
        )
        for t in tasks
    ]
    return [Stage("base", zoo.base, zoo.base_recipe, "zoo.base_recipe", "zoo.base"), *experts]


def _multi_task_stages(zoo: Zoo) -> "list[Stage]":
    """Return the stage of the multi-task network, if the zoo has one."""
    if zoo.multi_task is None:
        return []
    recipe = (zoo.multi_task_recipe, "zoo.multi_task_recipe", "zoo.multi_task")
    return [Stage("multi-task network", zoo.multi_task, *recipe)]


class Stage:
    """One file and the recipe that makes it.

    Args:
        what: For messages.
        file: Its path; without a recipe perhaps a name of the Hub.
        recipe: Config of the run that makes it.
        option: Name of the option that holds the recipe, for messages.
        place: Name of the option that holds the file, likewise.
    """

    def __init__(self, what: str, file: str, recipe: str | None, option: str, place: str) -> None:
        self.what, self.file, self.recipe, self.option = what, file, recipe, option
        self.path, self.place = Path(file), place

    def exists(self) -> bool:
        """Whether the file is there, or can be had from the Hub."""
        return hub.exists(self.file, plain=self.recipe is None)

    def check(self, encoder: Encoder) -> Iterator[str]:
        """Check that the file is there and readable, or a recipe for it.

        Yields:
            Why it is not the encoder's, where it is used as it is.

        Raises:
            InputError: Neither is.
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
            self._check_alone()
        self._read_recipe()

    def _check_alone(self) -> None:
        """Raise InputError for a recipe of several devices: one has another batch size."""
        trainer = (self._read_recipe() or {}).get("trainer") or {}
        wanted = {key: trainer[key] for key in ON_ONE_DEVICE if key in trainer}
        if many := {k: v for k, v in wanted.items() if v not in ("auto", *ON_ONE_DEVICE[k])}:
            given = ", ".join(f"trainer.{key}={value!r}" for key, value in many.items())
            raise InputError(
                f"the {self.what} is missing: {self.path} does not exist, and {self.option}="
                f"{self.recipe!r} with {given} is not a recipe for one device; make the file first "
                f"by a run of its own: fit --config {self.recipe} --model.output {self.path}"
            )

    def is_given(self) -> bool:
        """Whether the file is there and was made by the user."""
        if not self.exists():
            return False
        metadata = open_checkpoint(self.file).metadata
        return self.recipe is None or "fingerprint" not in metadata

    def is_made(self, inputs: dict[str, Any]) -> bool:
        """Whether the file is there and was made from these inputs, or by the user."""
        if not self.exists() or self.is_given():
            return self.exists()
        return open_checkpoint(self.file).metadata["fingerprint"] == self._mark(inputs)

    def images(self) -> dict[str, str] | None:
        """Return the digests of the images that the recipe itself names; None if they are gone.

        Raises:
            InputError: The recipe's data cannot be read.
        """
        options = (self._read_recipe() or {}).get("data") or {}
        roots = [options.get("root"), *(options.get("roots") or {}).values()]
        if not any(roots):
            return {}
        if not all(Path(root).exists() for root in roots if root):
            return None
        try:
            data = MergeDataModule(**options)
        except TypeError as fault:
            raise InputError(f"{self.option}={self.recipe!r}: data: {fault}") from None
        data.load(test=None)
        return {task: data.digest(task) for task in data.tasks}

    def make(self, fit: Fit, options: list[str], inputs: dict[str, Any]) -> None:
        """Run the recipe unless the file is made already."""
        if self.is_made(inputs):
            return
        assert self.recipe is not None  # `check` has seen the file otherwise
        self._check_alone()
        again = " again, as its inputs changed" if self.path.exists() else ""
        rank_zero_info(f"{self.what}: making {self.path}{again}")
        folder = self.path.with_suffix("")
        fit(
            [
                *("--config", self.recipe, *options),
                *("--model.output", str(self.path), "--model.overwrite", "true"),
                *("--model.metadata", json.dumps({"fingerprint": self._mark(inputs)})),
                *("--trainer.default_root_dir", str(folder)),
                *(w for k, v in ON_ONE_DEVICE.items() for w in (f"--trainer.{k}", str(v[0]))),
            ]
        )
        if not self.path.exists():
            raise InputError(f"{self.what}: the run of {self.recipe} ended without {self.path}")

    def _mark(self, inputs: dict[str, Any]) -> str:
        return fingerprint({"recipe": self._read_recipe(), **inputs})

    def _read_recipe(self) -> Any:
        if self.recipe is None:
            return None
        try:
            return yaml.safe_load(read_text(self.recipe))
        except (OSError, UnicodeError, yaml.YAMLError) as fault:
            raise InputError(
                f"{self.option}={self.recipe!r} is no readable config: {fault}"
            ) from None


def fingerprint(value: Any) -> str:
    """Return a digest of anything JSON can hold."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _prepare_heads(
    zoo: Zoo, encoder: Encoder, data: MergeDataModule, inputs: dict[str, str]
) -> None:
    """Make the heads whose inputs are not those of the file's; keep those of other tasks."""
    if _heads_are_given(zoo):
        return
    assert isinstance(zoo.heads, str)
    marks = {f"fingerprint/{task}": _head_mark(zoo, data, task, inputs) for task in data.tasks}
    path = Path(zoo.heads)
    heads: dict[str, Head] = {}
    known: dict[str, str] = {}
    if path.exists():
        heads, known = load_heads(path), _marks(path)
    lacking = [
        task
        for task in data.tasks
        if known.get(f"fingerprint/{task}") != marks[f"fingerprint/{task}"]
    ]
    if lacking:
        rank_zero_info(f"heads: making those of {', '.join(lacking)} in {path}")
        for task, head in make_heads(zoo, encoder, data, lacking):
            heads[task], mark = head, f"fingerprint/{task}"
            known |= {mark: marks[mark], _MADE: _making(zoo)}
            save_heads(heads, path, metadata=known)  # to be there when the run is stopped


def _check_heads(zoo: Zoo) -> None:
    """Raise InputError for a file of heads that another run has made in another way."""
    if _heads_are_given(zoo):
        return
    assert isinstance(zoo.heads, str)
    made = open_checkpoint(zoo.heads).metadata.get(_MADE) if Path(zoo.heads).exists() else None
    if made not in (None, _making(zoo)):
        raise InputError(
            f"zoo.heads={zoo.heads!r} holds heads of another kind, which other networks were "
            f"trained or measured with: {made}; this run makes {_making(zoo)}. Give another file, "
            "or remove this one"
        )


def _making(zoo: Zoo) -> str:
    """Return how heads are made, in words."""
    how: Any = {"class_means": zoo.head_scale, "linear_probe": ""}
    return f"{zoo.make_heads} {how.get(zoo.make_heads, zoo.text)}".strip()


def _head_mark(zoo: Zoo, data: MergeDataModule, task: str, inputs: dict[str, str]) -> str:
    """Return the fingerprint of what a task's head is made from."""
    text = zoo.text
    made_from: list[Any] = [inputs["base"], inputs[task], zoo.make_heads, zoo.head_scale, str(text)]
    made_from.append(data.classes[task])
    if zoo.make_heads == "zero_shot":
        made_from.append(task_spec(task).prompts(data.classes[task]))
        made_from.append(text.weights and file_hash(text.weights))
    return fingerprint(made_from)


def _heads_are_given(zoo: Zoo) -> bool:
    """Whether the heads are a user's own: in files by task, on the Hub, or not made here."""
    if not isinstance(zoo.heads, str) or by_task(zoo.heads):
        return True
    if Path(zoo.heads).exists():
        return not _marks(zoo.heads)
    return hub.exists(zoo.heads, plain=False)


def _marks(heads: str | Path) -> dict[str, str]:
    """Return the fingerprints that a file of heads made here has."""
    metadata = open_checkpoint(heads).metadata
    return {key: mark for key, mark in metadata.items() if key.startswith("fingerprint/")}
