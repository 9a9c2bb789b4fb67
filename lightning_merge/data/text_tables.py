"""Texts in tables and plain files: `<root>/<task>/{train,test}.{tsv,csv,jsonl}` and others."""

from collections.abc import Sequence
from pathlib import Path

from lightning_merge.core.checkpoints.names import composed, enumerate_names
from lightning_merge.core.errors import InputError
from lightning_merge.data.examples import Examples
from lightning_merge.data.source import Source
from lightning_merge.data.splits import complement, hold_out
from lightning_merge.data.tasks import task_spec
from lightning_merge.data.text.examples import balanced, chosen, text_examples
from lightning_merge.data.text.files import TABLES, read_rows, read_side_by_side
from lightning_merge.data.text.layouts import TableLayout

_SPLITS = ("train", "test")
_OWN_SPLIT_SEED = 0


class TextTables(Source):
    r"""Tasks as files of text, one folder per task.

    A task of the table has the files, and the columns, that its publishers gave it. A task of your
    own has one file per split with the columns `text`, `label` and, if it has pairs of texts,
    `text_pair`; examples with the same `group` stay on one side of a division. Or it has a
    folder per split with one file per class, `<class>.txt`, and one text a line.

    A .csv file may have quotes around its cells; in a .tsv file quotes are part of the text.

    Examples:
        >>> Path("films").mkdir()
        >>> for split in ("train", "test"):
        ...     file = Path("films", f"{split}.tsv")
        ...     _ = file.write_text("text\tlabel\na joy\tgood\na bore\tbad\n")
        >>> films = TextTables(".").load("films", "train")
        >>> films.classes, films.item(0).texts
        (('bad', 'good'), ('a joy',))
    """

    name = "tables"
    layout = "<task>/{train,test}.{tsv,csv,jsonl}, or the files that the task table names,"

    def tasks(self) -> list[str]:
        """Return the folders of root that hold the files of a task."""
        folders = (p for p in self.folder().iterdir() if p.is_dir())
        return sorted(composed(p.name) for p in folders if self._has_files(p))

    def _has_files(self, folder: Path) -> bool:
        layout = _layout(composed(folder.name), folder)
        return all((folder / name).is_file() for name in layout.train[:1]) and bool(layout.train)

    def offers(self, task: str, split: str) -> bool:
        """Whether the task has files for the split, or divides its train files."""
        folder = self.place(task)
        layout = _layout(task, folder)
        return not folder.is_dir() or bool(layout.test) or task_spec(task).table is not None

    def own_split(self, task: str) -> bool:
        """Whether the task has no test files, so that we divide its train files."""
        spec = task_spec(task)
        return spec.table is not None and not spec.table.test

    def load(self, task: str, split: str) -> Examples:
        """Return the examples of one split."""
        folder, spec = self.place(task), task_spec(task)
        layout = _layout(task, folder)
        divided = self.own_split(task)
        files = layout.train if split == "train" or divided else layout.test
        paths = [folder / name for name in files]
        if lacking := [path for path in paths if not path.is_file()]:
            raise self.missing(task, f"{enumerate_names([*map(str, lacking)], 3)} is not a file")
        if not paths:
            raise self.missing(task, f"{folder} has no files for {split}")
        rows = _rows(paths, layout)
        examples = text_examples(task, rows, layout.classes, spec.text, str(paths[0]))
        if layout.balanced:
            examples = chosen(examples, balanced(examples.labels))
        if not divided:
            return examples
        share, groups = layout.test_share, examples.groups
        test = hold_out(examples.labels, share, _OWN_SPLIT_SEED, groups)
        return chosen(examples, test if split == "test" else complement(test, len(examples)))


def _layout(task: str, folder: Path) -> TableLayout:
    """Return the layout of a task's files: the table's, or that of the files in its folder."""
    if (known := task_spec(task).table) is not None:
        return known
    files = {split: _files_of(folder, split) for split in _SPLITS}
    by_class = (*files["train"], *files["test"])
    classes = {name: Path(name).stem for name in by_class if Path(name).suffix == ".txt"}
    return TableLayout(
        files["train"],
        files["test"],
        label="{file}" if classes else "{label}",
        classes={Path(name).name: stem for name, stem in classes.items()},
    )


def _files_of(folder: Path, split: str) -> tuple[str, ...]:
    """Return the files of a split of a user's own task."""
    tables = [f"{split}{suffix}" for suffix in TABLES if (folder / f"{split}{suffix}").is_file()]
    if len(tables) > 1:
        raise InputError(f"{folder} has {' and '.join(tables)}; keep one file per split")
    return tuple(tables) or tuple(
        sorted(f"{split}/{file.name}" for file in folder.glob(f"{split}/*.txt"))
    )


def _rows(paths: Sequence[Path], layout: TableLayout) -> list[dict[str, str]]:
    """Return the fields of all examples."""
    where = str(paths[0])
    if layout.side_by_side:
        rows = [*read_side_by_side(paths, layout.columns, layout.encoding)]
    else:
        rows = [row for path in paths for row in read_rows(path, layout)]
    named = [layout.named(row, where) for row in rows]
    if rows and not layout.group and "group" in rows[0]:
        named = [{**own, "group": row["group"]} for own, row in zip(named, rows, strict=True)]
    return named
