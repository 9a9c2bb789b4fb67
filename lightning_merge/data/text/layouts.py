"""How files hold the texts of a task, and how a network gets to see them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from lightning_merge.core.errors import InputError

Row = Mapping[str, str]
"""Column -> its value in one example."""


def fill(template: str, row: Row) -> str:
    """Return a template with every {column} replaced by the row's value.

    Args:
        template: Text with names of columns in braces.
        row: Column -> value.

    Raises:
        KeyError: There is no such column.

    Examples:
        >>> fill("{premise} So {choice1}", {"premise": "It rained.", "choice1": "roads are wet."})
        'It rained. So roads are wet.'
    """
    return re.sub(r"\{([^{}]+)\}", lambda found: row[found[1]], template).strip()


@dataclass(frozen=True)
class TextForm:
    """What a network sees of an example of text, as templates with {column} in them.

    Args:
        texts: The text, or the two texts of a pair, for encoders of text; empty for tasks whose
            answers differ from example to example.
        prompt: Input of T5, which ranks or writes answers.
        answers: An answer for each class, in their order.
        wording: Whose wording prompt and answers are.

    Examples:
        >>> form = TextForm(("{sentence}",), "good or bad? {sentence}", ("bad", "good"))
        >>> form.wording
        'own'
    """

    texts: tuple[str, ...] = ("{text}",)
    prompt: str = ""
    answers: tuple[str, ...] = ()
    wording: str = "own"


@dataclass(frozen=True)
class TableLayout:
    """Files of a task below its folder; `TextTables` says how each kind of file is read.

    Args:
        train: Files of the train split, one after the other.
        test: Files of the test split; without any, a share of train becomes test.
        columns: Names of the columns, if the files do not name them.
        fields: Name in templates -> template of columns; the columns themselves if empty.
        label: Template of the label.
        classes: Value of the label -> name of the class, in the order of the classes; the sorted
            values are the names if empty.
        group: Template of what examples have in common that stay on one side of a division.
        group_until: Only what stands before the last of these characters is their group.
        kind: Suffix whose rules hold for files that have another one.
        pattern: Regular expression of one example, with named groups as columns, for files that
            are no tables.
        side_by_side: Whether the files of a split hold its columns, line by line.
        encoding: Encoding of the files.
        balanced: Whether all classes are reduced to the size of the smallest one.
        test_share: Share of each class that becomes test, if there are no test files.

    Examples:
        >>> TableLayout(("custrev.neg", "custrev.pos"), label="{file}").test_share
        0.2
    """

    train: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    fields: Mapping[str, str] = field(default_factory=dict)
    label: str = "{label}"
    classes: Mapping[str, str] = field(default_factory=dict)
    group: str = ""
    group_until: str = ""
    kind: str = ""
    pattern: str = ""
    side_by_side: bool = False
    encoding: str = "utf-8-sig"
    balanced: bool = False
    test_share: float = 0.2

    def named(self, row: Row, where: str) -> dict[str, str]:
        """Return the fields of a row, with its label and group as `label` and `group`.

        Args:
            row: Column -> value.
            where: What to call the file in messages.

        Raises:
            InputError: A column is missing.
        """
        wanted = {**self.fields, "label": self.label}
        if self.group:
            wanted["group"] = self.group
        try:
            found = {name: fill(template, row) for name, template in wanted.items()}
        except KeyError as lacking:
            raise InputError(
                f"{where} has no column {lacking}, only {', '.join(row)}; rename one"
            ) from None
        if self.group_until:
            found["group"] = found["group"].rpartition(self.group_until)[0]
        return found if self.fields else {**row, **found}
