"""Examples of text from rows of columns, whatever file or data set holds them."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_merge.core.checkpoints.names import enumerate_names
from lightning_merge.core.errors import InputError
from lightning_merge.data.examples import Examples
from lightning_merge.data.text.layouts import Row, TextForm, fill
from lightning_merge.models.texts import Texts

_ORDINALS = ("first", "second", "third", "fourth", "fifth")


def text_examples(
    task: str, rows: Sequence[Row], classes: Mapping[str, str], form: TextForm | None, where: str
) -> Examples:
    """Return examples whose texts are made from rows.

    Args:
        task: Name of the task, for messages.
        rows: Fields of each example; `label` is the value of its label, and examples of one `group`
            belong together.
        classes: Value of a label -> name of its class, in order. If empty, labels are the texts of
            answers that differ from example to example, or the sorted values name the classes.
        form: Templates of what a network sees; `text`, and `text_pair` if there is one, if None.
        where: What to call the rows in messages.

    Raises:
        InputError: A field is missing, a label is no class, or a text is empty.

    Examples:
        >>> rows = [{"text": "a joy", "label": "1"}, {"text": "a bore", "label": "0"}]
        >>> films = text_examples("films", rows, {"0": "bad", "1": "good"}, None, "films.tsv")
        >>> films.classes[films.labels[0]], films.item(0).texts
        ('good', ('a joy',))
    """
    if not rows:
        raise InputError(f"task {task!r}: {where} has no examples; add some")
    form = _own_form(rows[0]) if form is None else form
    items = [_item(task, row, form, f"{where}, example {i}") for i, row in enumerate(rows, 1)]
    if not classes and any("{" in answer for answer in form.answers):
        placed = zip(rows, items, strict=True)
        rows = [{**row, "label": _place(row["label"], item)} for row, item in placed]
        classes = dict(zip("0123456789", _ORDINALS[: len(form.answers)], strict=False))
    classes = classes or {value: value for value in sorted({row["label"] for row in rows})}
    number = {value: i for i, value in enumerate(classes)}
    if unknown := sorted({row["label"] for row in rows} - set(number)):
        raise InputError(
            f"task {task!r}: {where} has the labels {enumerate_names([*map(repr, unknown)], 5)}, "
            f"which are no classes; the classes are {enumerate_names([*map(repr, number)], 12)}"
        )
    groups = [row.get("group") for row in rows]
    named = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    return Examples(
        tuple(classes.values()),
        torch.tensor([number[row["label"]] for row in rows]),
        item=partial(_item_at, items),
        content=partial(_content_at, items),
        exact=partial(_exact_at, items),
        kind="texts",
        parts=len(form.texts),
        answers=len(form.answers),
        groups=None if None in named else torch.tensor([named[group] for group in groups]),
    )


def chosen(examples: Examples, rows: Tensor) -> Examples:
    """Return some of the examples.

    Args:
        examples: Examples.
        rows: Their indices, int64 [n].

    Examples:
        >>> rows = [{"text": "a joy", "label": "good"}, {"text": "a bore", "label": "bad"}]
        >>> films = text_examples("films", rows, {}, None, "films.tsv")
        >>> chosen(films, torch.tensor([1])).item(0).texts
        ('a bore',)
    """
    return replace(
        examples,
        labels=examples.labels[rows],
        item=partial(_at, examples.item, rows.tolist()),
        content=partial(_at, examples.content, rows.tolist()),
        exact=None if examples.exact is None else partial(_at, examples.exact, rows.tolist()),
        groups=None if examples.groups is None else examples.groups[rows],
    )


def balanced(labels: Tensor, seed: int = 0) -> Tensor:
    """Return sorted indices of as many examples of every class as the smallest one has.

    Args:
        labels: Classes, int64 [n].
        seed: Seed of the choice.

    Examples:
        >>> labels = torch.tensor([0, 1, 0, 0, 1])
        >>> labels[balanced(labels)].bincount()
        tensor([2, 2])
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    present = labels.unique().tolist()
    members = [order[labels[order] == label] for label in present]
    return torch.cat([own[: min(map(len, members))] for own in members]).sort().values


def content_of(item: Texts) -> bytes:
    """Return what identifies an example: its words, however they are spaced, cased or punctuated.

    Examples:
        >>> content_of(Texts(("A joy , really !",))) == content_of(Texts(("a joy, really",)))
        True
    """
    texts = item.texts or (item.prompt, *item.answers)
    words = (" ".join(re.findall(r"\w+", text.casefold())) or text for text in texts)
    return "\0".join(words).encode()


def _place(label: str, item: Texts) -> str:
    """Return the number of the answer that a label repeats, or the label itself."""
    answers = [answer.casefold() for answer in item.answers]
    return str(answers.index(label.casefold())) if label.casefold() in answers else label


def _own_form(row: Row) -> TextForm:
    return TextForm(("{text}", "{text_pair}") if "text_pair" in row else ("{text}",))


def _item(task: str, row: Row, form: TextForm, where: str) -> Texts:
    try:
        item = Texts(
            tuple(fill(template, row) for template in form.texts),
            fill(form.prompt, row),
            tuple(fill(template, row) for template in form.answers),
        )
    except KeyError as lacking:
        raise InputError(
            f"task {task!r}: {where} has no column {lacking}, only {', '.join(row)}; rename one"
        ) from None
    if empty := [text for text in (*item.texts, *item.answers) if not text]:
        raise InputError(f"task {task!r}: {where} has an empty text{empty[0]}; leave it out")
    return item


def _item_at(items: Sequence[Texts], i: int) -> Texts:
    return items[i]


def _content_at(items: Sequence[Texts], i: int) -> bytes:
    return content_of(items[i])


def _exact_at(items: Sequence[Texts], i: int) -> bytes:
    texts, prompt, answers = items[i]
    return "\0".join([*texts, "", prompt, *answers]).encode()


def _at(function: Callable[[int], Any], rows: Sequence[int], i: int) -> Any:
    return function(rows[i])
