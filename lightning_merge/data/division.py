"""Division of every task's images into parts that are proved disjoint and recorded."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from lightning_merge.core.checkpoints.names import enumerate_names
from lightning_merge.core.checks import require_choice, require_in
from lightning_merge.core.errors import InputError
from lightning_merge.core.ranks import Ranks
from lightning_merge.data import classes, splits
from lightning_merge.data.examples import Examples
from lightning_merge.data.source import Source

PARTS = ("train", "validation", "coefficients", "test")
TRANSDUCTIVE = "transductive"
"""The part of the test examples that a transductive method is fitted on, without their labels."""


def split_of(part: str) -> str:
    """Return the source's split that a part belongs to.

    Examples:
        >>> split_of("validation"), split_of("test")
        ('train', 'test')
    """
    return "test" if part in ("test", TRANSDUCTIVE) else "train"


class Division:
    """Parts of the tasks of one source; `MergeDataModule` documents the arguments.

    Attributes:
        classes: Task -> names of its classes.
        record: Task -> its entry in splits.json.

    Examples:
        >>> from lightning_merge.data.embedded import EmbeddedTasks
        >>> options = {"coefficient_fraction": 1.0, "duplicates": "error", "split_seed": 0}
        >>> division = Division(EmbeddedTasks(""), validation_fraction=0.25, **options)
        >>> division.load("drawn_hues", test=False)
        >>> division.record["drawn_hues"]["validation"]["images"]
        440
    """

    def __init__(
        self,
        source: Source,
        *,
        validation_fraction: float,
        coefficient_fraction: float,
        duplicates: str,
        split_seed: int,
        at_most: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        require_choice(("error", "drop"), "data.", duplicates=duplicates)
        require_in("(0, 1)", "data.", validation_fraction=validation_fraction)
        for part, most in at_most.items():
            require_choice(("train", "validation", "test"), "data.", at_most=part)
            require_in("[1, inf)", "data.at_most.", **{part: most})
        self.at_most = at_most
        self.source, self.duplicates, self.split_seed = source, duplicates, split_seed
        self.validation_fraction = validation_fraction
        self.coefficient_fraction = coefficient_fraction
        self.classes: dict[str, tuple[str, ...]] = {}
        self.record: dict[str, Any] = {}
        self._examples: dict[tuple[str, str], Examples] = {}
        self._hashes: dict[tuple[str, str], list[str]] = {}
        self._rows: dict[tuple[str, str], Tensor] = {}
        self._exact: dict[tuple[str, str], list[str]] = {}
        self._elsewhere: dict[str, list[str]] = {}

    def load(self, *tasks: str, test: bool | None = None, apart_from: Sequence[str] = ()) -> None:
        """Find the examples of tasks and divide them; see `MergeDataModule.load`.

        Args:
            tasks: Names of the tasks.
            test: Whether to read test splits; None: if the source is expected to have them.
            apart_from: Tasks whose test examples are left out of train, if copies are dropped.
        """
        new = [task for task in tasks if any([self._read(task, s) for s in self._of(task, test)])]
        drop = self.duplicates == "drop"
        elsewhere = set().union(*map(self._tested, apart_from)) if drop and new else set()
        for task in new:
            self._divide(task, elsewhere.union(self._tested(task)) if drop else ())

    def _of(self, task: str, test: bool | None) -> Sequence[str]:
        """Return the splits to read."""
        if not test and (test is None or self.duplicates == "drop"):
            test = self.source.offers(task, "test")
        return ("train", "test") if test else ("train",)

    def _tested(self, task: str) -> Collection[str]:
        """Return digests of the test examples of a task, which need not be one of the division."""
        if (task, "test") not in self._hashes and task not in self._elsewhere:
            found: list[str] = []
            if self.source.offers(task, "test"):
                found = splits.content_hashes(self.source.load(task, "test"), f"{task} test")
            self._elsewhere[task] = found
        return self._hashes.get((task, "test")) or self._elsewhere[task]

    def has(self, task: str, part: str) -> bool:
        """Whether the part's split has been loaded."""
        return (task, part) in self._rows

    def part(self, task: str, part: str) -> tuple[Examples, Tensor]:
        """Return the split that a part belongs to, and the part's rows in it, int64 [n]."""
        return self._examples[task, split_of(part)], self._rows[task, part]

    def check_apart(self, names: Sequence[str], tasks: Sequence[str]) -> None:
        """Check that data sets out of domain share no image with the tasks, in any split read.

        Networks were trained on the train splits, and transductive ones on test examples; a shared
        image is in the domain wherever it is.

        Args:
            names: Data sets that should be out of domain.
            tasks: Tasks of the domain.

        Raises:
            InputError: An image of the same content is in both.
        """
        apart = {key: set(found) for key, found in self._hashes.items() if key[0] in names}
        for (task, split), found in self._hashes.items() if apart else ():
            for (name, own), theirs in apart.items() if task in tasks else ():
                if shared := len(theirs.intersection(found)):
                    raise InputError(
                        f"data.out_of_domain: {shared} example(s) of {name!r} ({own}) are also in "
                        f"the {split} split of the task {task!r}, so an accuracy on them would "
                        f"not be out of domain; leave {name!r} out, or remove them from it"
                    )

    def check_tasks(self, tasks: Sequence[str]) -> None:
        """Check that no task's train split has a test example of another one, as far as read.

        Raises:
            InputError: An example of the same content is in both.
        """
        trained = {task: self._trained(task) for task in tasks if self.has(task, "train")}
        for other in tasks:
            test = set(self._hashes.get((other, "test"), ()))
            for task, hashes in trained.items() if test else ():
                if task != other and (shared := len(test & hashes)):
                    raise InputError(
                        f"task {task!r}: {shared} example(s) of its train split are test examples "
                        f"of {other!r}, so an accuracy on them would not be honest; leave them out "
                        "of training by data.duplicates: drop, or leave out one of the tasks"
                    )

    def _trained(self, task: str) -> set[str]:
        return {*self.hashes(task, "train"), *self.hashes(task, "validation")}

    def check_equal(self, ranks: Ranks) -> None:
        """Check that all processes have found the same images.

        Raises:
            InputError: This process has found other images than the first one.
        """
        own = {
            task: [part["digest"] for part in record.values() if isinstance(part, dict)]
            for task, record in self.record.items()
        }
        first = ranks.gather(own)[0]
        if differing := [task for task in own if own[task] != first[task]]:
            raise InputError(
                f"data.root={self.source.root!r} holds other images of {enumerate_names(differing)}"
                " for this process than for the first one; give all the same files"
            )

    def hashes(self, task: str, part: str) -> list[str]:
        """Return a digest of each image of a part."""
        hashes = self._hashes[task, split_of(part)]
        return [hashes[row] for row in self._rows[task, part].tolist()]

    def _read(self, task: str, split: str) -> bool:
        """Find and hash one split, unless done before; return whether it was done now."""
        if (task, split) in self._hashes:
            return False
        examples = classes.checked(task, split, self.source.load(task, split))
        if not len(examples):
            raise InputError(f"task {task!r}: {split} has no {examples.kind}; add some")
        if split == "test":
            examples = classes.in_order_of(self._examples[task, "train"].classes, task, examples)
        self._examples[task, split] = examples
        self._hashes[task, split] = splits.content_hashes(examples, f"{task} {split}")
        if examples.exact is not None:  # copies of texts may be spelled in other ways
            exact = replace(examples, content=examples.exact)
            self._exact[task, split] = splits.content_hashes(exact, f"{task} {split}")
        return True

    def _divide(self, task: str, leave_out: Collection[str]) -> None:
        """Divide a task into parts, prove them disjoint and record them."""
        train, hashes = self._examples[task, "train"], self._hashes[task, "train"]
        test = self._hashes.get((task, "test"), [])
        kept, held_out = splits.divide(
            train.labels,
            hashes,
            self.validation_fraction,
            self.split_seed,
            leave_out=leave_out,
            groups=train.groups,
        )
        kept = self._few("train", kept, train.labels)
        held_out = self._few("validation", held_out, train.labels)
        rows = {"train": kept, "validation": held_out, "coefficients": self._share(held_out)}
        if test:
            tested = self._examples[task, "test"].labels
            rows["test"] = self._few("test", torch.arange(len(test)), tested)
            self._rows[task, TRANSDUCTIVE] = self._share(rows["test"])
        self._rows.update({(task, part): r for part, r in rows.items()})
        self._note(task, rows)

    def _few(self, part: str, rows: Tensor, labels: Tensor) -> Tensor:
        """Return the rows of a part, or as many as `at_most` allows, of all classes alike."""
        most = self.at_most.get(part, len(rows))
        return splits.draw_few(rows, labels, most, self.split_seed + 2)

    def _share(self, rows: Tensor) -> Tensor:
        return splits.draw_share(rows, self.coefficient_fraction, self.split_seed + 1)

    def _note(self, task: str, rows: dict[str, Tensor]) -> None:
        """Check the parts of a task and record them for splits.json."""
        train = self._examples[task, "train"]
        for part in ("train", "validation"):
            if not len(rows[part]):
                raise InputError(
                    f"data.validation_fraction={self.validation_fraction} leaves none of the "
                    f"{len(train)} images in {len(train.classes)} classes of task {task!r} for "
                    f"{part}; give more images per class or another fraction"
                )
        hashes = {part: self.hashes(task, part) for part in rows}
        splits.check_disjoint(task, {p: h for p, h in hashes.items() if p != "coefficients"})
        self.classes[task] = train.classes
        self.record[task] = {
            "classes": list(train.classes),
            "left_out": len(train) - len(rows["train"]) - len(rows["validation"]),
            "validation_rows": rows["validation"].tolist(),
            "coefficient_rows": rows["coefficients"].tolist(),
            **{
                part: {"images": len(h), "digest": splits.digest(h, self._labels(task, part))}
                for part, h in self._contents(task, rows).items()
            },
        }

    def _contents(self, task: str, rows: Mapping[str, Tensor]) -> dict[str, list[str]]:
        """Return digests of what the examples of each part are, letter by letter."""
        found = {}
        for part, own in rows.items():
            place = (task, split_of(part))
            hashes = self._exact.get(place, self._hashes[place])
            found[part] = [hashes[row] for row in own.tolist()]
        return found

    def _labels(self, task: str, part: str) -> Tensor:
        examples, rows = self.part(task, part)
        return examples.labels[rows]

    def write(
        self, path: Path, tasks: Iterable[str], transductive: Iterable[str], **kinds: Sequence[str]
    ) -> None:
        """Write splits.json.

        Args:
            path: The file.
            tasks: Tasks to describe.
            transductive: Tasks that are fitted on test examples.
            kinds: Lists of tasks to name, such as the unseen ones.
        """
        tasks = list(tasks)
        names = [self.source.name_of(task) for task in tasks]
        settings: dict[str, Any] = {
            "source": names[0] if len(set(names)) == 1 else dict(zip(tasks, names, strict=True)),
            "split_seed": self.split_seed,
            "validation_fraction": self.validation_fraction,
            "coefficient_fraction": self.coefficient_fraction,
        }
        if self.at_most:
            settings["at_most"] = dict(self.at_most)
        entries = {task: dict(self.record[task]) for task in tasks}
        if own := [task for task in tasks if self.source.own_split(task)]:
            settings["own_split"] = own
        settings |= {kind: list(names) for kind, names in kinds.items() if names}
        for task in transductive:
            settings["transductive"] = True
            entries[task]["transductive_rows"] = self._rows[task, TRANSDUCTIVE].tolist()
        splits.write(path, settings, entries)
