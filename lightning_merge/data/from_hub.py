"""Data sets of the Hugging Face Hub, from the Hub, its cache, or files that a user saved."""

from functools import partial
from pathlib import Path
from typing import Any

from lightning_merge.core.checkpoints.hub import offline_if_unreachable
from lightning_merge.core.checkpoints.names import composed
from lightning_merge.core.errors import InputError, warn
from lightning_merge.data.examples import Examples, encoded_examples
from lightning_merge.data.layouts import HubLayout
from lightning_merge.data.source import Source
from lightning_merge.data.tasks import task_spec
from lightning_merge.data.text.examples import text_examples
from lightning_merge.data.text.files import plain
from lightning_merge.data.text.layouts import TableLayout, TextForm, fill


class HubData(Source):
    """Tasks as Hugging Face data sets.

    `<root>/<task>` may be what `save_to_disk` wrote (a DatasetDict, or one Dataset per split) or
    a folder of parquet files whose names start with the split. Otherwise the repository in the
    task table is loaded, from the cache at root ("" is the library's own) or from the Hub.
    Splits are the repository's.

    Examples:
        >>> Path("pets").mkdir()
        >>> Path("pets/train-00000.parquet").touch()
        >>> HubData(".").tasks()
        ['pets']
    """

    name = "huggingface"
    layout = "<task>/ as save_to_disk writes it, <task>/**/{train,test}*.parquet, or a cache"

    def tasks(self) -> list[str]:
        """Return the saved data sets below root."""
        folders = (p for p in self.folder().iterdir() if p.is_dir())
        saved = (p for p in folders if _saved(p, "train") or _parquet(p, "train"))
        return sorted({composed(p.name) for p in saved})

    def load(self, task: str, split: str) -> Examples:
        """Return one split; images are decoded when they are read."""
        library, layout = _library(), task_spec(task).hub
        wanted = layout.train if split == "train" else layout.test
        dataset = self._open(library, task, layout, wanted)
        columns, form = dataset.column_names, task_spec(task).text
        if form is not None or ("text" in columns and layout.image not in columns):
            return _text_examples(task, split, dataset, layout, form)
        for column in (layout.image, layout.label):
            if column not in dataset.column_names:
                raise InputError(
                    f"task {task!r}: {split} has the columns {dataset.column_names}, "
                    f"not {column!r}; rename one"
                )
        names = _class_names(dataset, task, layout)
        values = dataset[layout.label][:]
        if isinstance(values[0], str):
            number = {name: i for i, name in enumerate(names)}
            values = [number[value] for value in values]
        images = dataset.select_columns(layout.image).cast_column(
            layout.image, library.Image(decode=False)
        )
        return encoded_examples(
            names,
            values,
            read=partial(_encoded, images, layout.image),
            where=partial(_name, task, split),
        )

    def _open(self, library: Any, task: str, layout: HubLayout, split: str) -> Any:
        if self.root:
            folder = self.place(task)
            if saved := _saved(folder, split):
                return library.load_from_disk(str(saved))
            if files := _parquet(folder, split):
                return library.Dataset.from_parquet([str(file) for file in files])
            if folder.is_dir():
                raise self.missing(task, f"{folder} has no split {split!r}")
        if not layout.path:
            raise self.missing(task, "the task table names no repository")
        try:
            with offline_if_unreachable():
                return library.load_dataset(
                    layout.path, layout.config, split=split, cache_dir=self.root or None
                )
        except Exception as error:  # offline, gone, gated, ...: many kinds
            raise self.missing(task, f"{layout.path} cannot be loaded ({error})") from None


def _text_examples(
    task: str, split: str, dataset: Any, layout: HubLayout, form: TextForm | None
) -> Examples:
    """Return texts; labels that are numbers have the names of the layout or the ClassLabel."""
    where = f"{task} {split}"
    names = layout.classes or getattr(dataset.features.get(layout.label), "names", None) or ()
    values = layout.labels or tuple(map(str, range(len(names))))
    columns = TableLayout(fields=layout.fields, label=f"{{{layout.label}}}", group=layout.group)
    rows = [columns.named(plain(row), where) for row in dataset]
    if layout.step:
        values = tuple(map(str, range(len(names))))
        rows = [{**r, "label": str(round(float(r["label"]) / layout.step))} for r in rows]
    if form is not None:
        whole = [row for row in rows if all(fill(text, row) for text in form.texts)]
        if empty := len(rows) - len(whole):
            warn(f"{where}: {empty} examples have an empty text and are left out")
        rows = whole
    if set(values) != {r["label"] for r in rows} and {r["label"] for r in rows} <= set(names):
        values = tuple(names)
    return text_examples(task, rows, dict(zip(values, names, strict=True)), form, where)


def _library() -> Any:
    try:
        import datasets
    except ImportError:
        raise InputError(
            "data.source='huggingface' needs the package datasets; "
            'run: pip install "lightning-merge[hub]"'
        ) from None
    return datasets


def _saved(folder: Path, split: str) -> Path | None:
    """Return the folder of one saved split; a DatasetDict keeps its splits the same way."""
    return folder / split if (folder / split / "state.json").is_file() else None


def _parquet(folder: Path, split: str) -> list[Path]:
    return sorted(folder.rglob(f"{split}*.parquet"))


def _class_names(dataset: Any, task: str, layout: HubLayout) -> list[str]:
    """Return the layout's names, those of a ClassLabel, the sorted strings, or the numbers."""
    names = getattr(dataset.features[layout.label], "names", None)
    if names is not None and len(layout.classes or names) != len(names):
        raise InputError(
            f"task {task!r}: {layout.label!r} has {len(names)} classes, {layout.path} has "
            f"{len(layout.classes)}; save that data set, or give the task another name"
        )
    if names is not None:
        return list(layout.classes or names)
    values = dataset.unique(layout.label)
    if all(isinstance(value, str) for value in values):
        return sorted(values)
    return list(layout.classes) or [str(number) for number in range(max(values) + 1)]


def _encoded(images: Any, column: str, i: int) -> bytes:
    cell = images[i][column]
    if cell["bytes"] is not None:
        return bytes(cell["bytes"])
    try:
        return Path(cell["path"]).read_bytes()
    except OSError as error:
        raise InputError(f"{cell['path']} cannot be read: {error.strerror or error}") from None


def _name(task: str, split: str, i: int) -> str:
    return f"image {i} of {task} {split}"
