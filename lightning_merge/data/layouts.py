"""Where torchvision and the Hugging Face Hub keep a data set, and how to divide it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Undivided:
    """Division of a data set that comes without test images of its own.

    Args:
        test_share: Share of each class that becomes test if there are no lists; the sorted paths
            determine which images (`splits.stratified_indices`).
        train_lists: Files of `data.splits` that name the published train images. The first is
            required; a list of validation images counts as train, of which we hold out our own.
        test_lists: Files that name the published test images; the first is required.

    Examples:
        >>> Undivided(0.1, ("eurosat-train.txt", "eurosat-val.txt")).lists["train"]
        ('eurosat-train.txt', 'eurosat-val.txt')
    """

    test_share: float
    train_lists: tuple[str, ...] = ()
    test_lists: tuple[str, ...] = ()

    @property
    def lists(self) -> dict[str, tuple[str, ...]]:
        """Split -> its files."""
        return {"train": self.train_lists, "test": self.test_lists}


@dataclass(frozen=True)
class TorchvisionLayout:
    """A data set of torchvision.

    Args:
        dataset: Class of torchvision.datasets.
        train: Arguments that select train images; the images of several are concatenated.
        test: Arguments that select test images.
        folder: Folder to give to the class, below the root.
        classes: Names in the order of its labels, if the class does not give those of the table.
        first_label: Number of the first class.
        undivided: Division of a data set that has no test images of its own.

    Examples:
        >>> svhn = TorchvisionLayout("SVHN", train=({"split": "train"}, {"split": "extra"}))
        >>> [arguments["split"] for arguments in svhn.train]
        ['train', 'extra']
    """

    dataset: str
    train: tuple[Mapping[str, Any], ...] = ({},)
    test: tuple[Mapping[str, Any], ...] = ()
    folder: str = ""
    classes: tuple[str, ...] = ()
    first_label: int = 0
    undivided: Undivided | None = None


@dataclass(frozen=True)
class HubLayout:
    """A data set of the Hugging Face Hub.

    Args:
        path: Repository.
        config: Name of its configuration, if it has several.
        image: Column of images.
        label: Column of labels.
        train: Name of the train split.
        test: Name of the test split.
        classes: Names in the order of its labels, if the column does not give those of the table.
        labels: Values of the label in that order, if they are not the numbers from 0.
        step: What numbers are rounded to a multiple of, to become classes; 0 does not round.
        fields: For texts, name in templates -> template of columns, see `TableLayout`.
        group: For texts, template of what examples of one group have in common.

    Examples:
        >>> HubLayout("uoft-cs/cifar10", image="img").label
        'label'
    """

    path: str = ""
    config: str | None = None
    image: str = "image"
    label: str = "label"
    train: str = "train"
    test: str = "test"
    classes: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    step: float = 0.0
    fields: Mapping[str, str] = field(default_factory=dict)
    group: str = ""
