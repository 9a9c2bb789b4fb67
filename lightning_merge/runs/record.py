"""The record of what a run depends on, by name, as stored in its folder."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning_merge import __version__
from lightning_merge.core.checkpoints.digests import code_of_module, file_hash
from lightning_merge.core.checkpoints.files import read_text, write_text
from lightning_merge.core.checkpoints.names import enumerate_names
from lightning_merge.data.datamodule import MergeDataModule

Record = Mapping[str, Any]
"""Name of an option or input -> its value or the hash of its content."""

CALLBACKS, TEST_IMAGES, HEAD = "trainer.callbacks", "test images of ", "head of "
OUT_OF_DOMAIN_KEY = "out of domain: "
MEASURED_ONLY = ("data.out_of_domain", "data.joint_labels", OUT_OF_DOMAIN_KEY)
"""Record keys, or their start, of what nothing but measuring depends on."""
TASK_VECTORS = "model.task_vectors"
"""Record key: how callbacks transform task vectors before coefficients are learned."""
CORRUPTION = "data.corruption"
"""Prefix of the options that change test images only."""
TRANSDUCTIVE = "model.transductive"
"""Record key: whether coefficients were learned from test images."""

WITHOUT_EFFECT = (
    "config",
    "overwrite",
    "report",
    "model.init_args.overwrite",
    "model.init_args.offload",
    "data.num_workers",
    "data.cache_gib",
    "data.image_cache",
    "data.image_cache_gib",
    "data.eval_batch_size",
    "trainer.default_root_dir",
    "trainer.logger",
    "trainer.log_every_n_steps",
    "trainer.profiler",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
)
"""Options that do not change any number."""

END = ("trainer.max_epochs", "trainer.max_steps", "trainer.max_time")
"""Options that determine when training ends."""


def describe_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run's numbers depend on besides its inputs.

    Args:
        config: Config of one command, as `plain` returns it.

    Examples:
        >>> config = {"model": {"lr": 0.1}, "data": {"num_workers": 4}}
        >>> described = describe_options(config)
        >>> described["model.lr"], "data.num_workers" in described
        (0.1, False)
    """
    options = dict(_leaves(config))
    callbacks = options.pop(CALLBACKS, None)
    return {
        "version": __version__,
        **{name: value for name, value in options.items() if name not in WITHOUT_EFFECT},
        **_own_code([config["model"], config["data"]]),
        CALLBACKS: [callbacks, _own_code(callbacks)],
    }


def describe_images(data: MergeDataModule) -> dict[str, Any]:
    """Return the digests of all tasks' images and the names of their classes.

    Args:
        data: Loaded data module, including the test split if there is one.

    Examples:
        >>> data = MergeDataModule(tasks=["drawn_hues", "drawn_stripes"], source="drawn")
        >>> data.load()
        >>> sorted(describe_images(data))[:2]
        ['classes of drawn_hues', 'classes of drawn_stripes']
    """
    found: dict[str, Any] = {}
    for task in data.tasks:
        found[f"images of {task}"] = data.digest(task)
        found[f"classes of {task}"] = list(data.classes[task])
        found[TEST_IMAGES + task] = data.record[task].get("test", {}).get("digest")
    for name in data.out_of_domain:
        test = data.record[name].get("test", {}).get("digest")
        found[OUT_OF_DOMAIN_KEY + name] = [data.digest(name), test, list(data.classes[name])]
    return found


def describe_files(files: Iterable[str]) -> dict[str, str]:
    """Return the hash of each file, by file name.

    Examples:
        >>> _ = Path("notes.txt").write_text("abc")
        >>> describe_files(["notes.txt"])
        {'file notes.txt': 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'}
    """
    return {f"file {file}": file_hash(file) for file in files}


def learning(record: Record) -> dict[str, Any]:
    """Return what a run's checkpoint depends on: all but the end of training and later steps.

    Examples:
        >>> learning({"model.lr": 0.1, "trainer.max_epochs": 3, "test images of mnist": "c0ffee"})
        {'model.lr': 0.1}
    """
    without = (CALLBACKS, "model.init_args.storage", *END)
    apart = _measured_only(record)
    return {k: v for k, v in record.items() if k not in without and not k.startswith(apart)}


def other_end(old: Record, new: Record) -> str:
    """Name the options for the end of training that differ; empty if none does.

    Examples:
        >>> other_end({"trainer.max_epochs": 3}, {"trainer.max_epochs": 5, "model.lr": 0.1})
        'trainer.max_epochs (3 before, 5 now)'
    """
    return differences(*({k: v for k, v in r.items() if k in END} for r in (old, new)))


def network(record: Record) -> dict[str, Any]:
    """Return what identifies a learned network and its data, whatever the trainer options.

    Examples:
        >>> network({"model.lr": 0.1, "trainer.max_epochs": 3})
        {'model.lr': 0.1}
    """
    kinds = ("model.", "data.", "file ", HEAD, "images of ", "classes of ", TEST_IMAGES)
    apart = _measured_only(record)
    return {k: v for k, v in record.items() if k.startswith(kinds) and not k.startswith(apart)}


def _measured_only(record: Record) -> tuple[str, ...]:
    """Return prefixes of entries that only affect accuracies."""
    return MEASURED_ONLY if record.get(TRANSDUCTIVE) else (*MEASURED_ONLY, TEST_IMAGES, CORRUPTION)


def differences(old: Record, new: Record) -> str:
    """Name the entries that differ, with both values if they are short.

    Examples:
        >>> differences({"seed_everything": 0}, {"seed_everything": 1})
        'seed_everything (0 before, 1 now)'
    """
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return enumerate_names([_change(name, old.get(name), new.get(name)) for name in names], 5)


def _change(name: str, before: Any, now: Any) -> str:
    values = f"{before} before, {now} now"
    short = name.startswith(("model.", "data.", "trainer.", "seed", "version")) and len(values) < 60
    return f"{name} ({values})" if short else name


def read(path: Path) -> Record:
    """Return what an earlier run depended on; an empty record if the file does not exist.

    Examples:
        >>> read(Path("run.json"))
        {}
    """
    return _loaded(read_text(path)) if path.exists() else {}


def write(record: Record, path: Path) -> None:
    """Write the record of a run.

    Examples:
        >>> write({"seed_everything": 0}, Path("run.json"))
        >>> read(Path("run.json"))
        {'seed_everything': 0}
    """
    write_text(path, json.dumps(record, indent=1) + "\n")


def stored(record: Record) -> dict[str, Any]:
    """Return the record as `read` would return it after `write`.

    Examples:
        >>> stored({"tasks": ("mnist", "dtd"), "unused": None})
        {'tasks': ['mnist', 'dtd']}
    """
    return _loaded(json.dumps(record, default=str))


def _loaded(text: str) -> dict[str, Any]:
    """Return a record without nulls: options unused, or unknown when the run was recorded.

    Class paths of methods are normalised, as a method can be imported from two packages.
    """
    text = re.sub(r'"lightning_merge\.methods\.(\w+)"', r'"lightning_merge.\1"', text)
    return {name: value for name, value in json.loads(text).items() if value is not None}


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value that is not a dict, with its dotted name."""
    if not isinstance(value, dict):
        yield name, value
        return
    for key, inner in value.items():
        yield from _leaves(inner, f"{name}.{key}" if name else key)


def _own_code(value: Any) -> dict[str, str]:
    """Return the hashes of the source files of user-defined classes anywhere in a config."""
    if isinstance(value, list):
        return {k: v for item in value for k, v in _own_code(item).items()}
    if not isinstance(value, dict):
        return {}
    module = str(value.get("class_path", "")).rpartition(".")[0]
    return {**_own_code([*value.values()]), **code_of_module(module)}
