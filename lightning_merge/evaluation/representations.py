"""Features of networks compared: their distance from the base's, and their picture in a plane."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_merge.core.checkpoints.files import atomic_write
from lightning_merge.core.checks import require_choice
from lightning_merge.core.errors import InputError

Projection = Literal["pca", "tsne"]
MIN_IMAGES = 4
"""Images that a picture needs."""
_IN_A_ROW, _INCHES = 4, 2.4


def feature_distance(features: Tensor, base: Tensor) -> float:
    """Return the mean Euclidean distance between two networks' features of the same images.

    LwPTV ("Merging Smarter, Generalizing Better", B.12) shows these distances between merged and
    pretrained network, on images out of domain.

    Args:
        features: Features of the merged network [n, dim].
        base: Features of the base [n, dim].

    Raises:
        InputError: The shapes differ, or there is no image.

    Examples:
        >>> feature_distance(torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.zeros(2, 2))
        3.0
    """
    if features.shape != base.shape or not len(features):
        raise InputError(
            f"features of shapes {list(features.shape)} and {list(base.shape)}: give those of the "
            "same images, at least one"
        )
    return float(torch.linalg.vector_norm(features.double() - base.double(), dim=1).mean())


def in_a_plane(features: Tensor, projection: Projection = "pca") -> Tensor:
    """Project features onto two dimensions, the same way every time.

    Args:
        features: Features [n, dim].
        projection: "pca", the first two principal components; or "tsne", t-SNE started from them,
            of perplexity 30, or (n - 1) / 3 if that is less.

    Returns:
        Points, float64 [n, 2].

    Raises:
        InputError: The projection is unknown, or the features are too few or too narrow.

    Examples:
        >>> line = torch.arange(4.0)[:, None] * torch.tensor([3.0, 0.0, 4.0])
        >>> in_a_plane(line)[:, 0].diff().abs().round(decimals=6).tolist()
        [5.0, 5.0, 5.0]
    """
    require_choice(get_args(Projection), projection=projection)
    if len(features) < MIN_IMAGES or features.shape[1] < 2:
        raise InputError(
            f"features of shape {list(features.shape)}: a picture needs {MIN_IMAGES} images and "
            "two dimensions; give more"
        )
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    given = features.double().cpu().numpy()
    if projection == "pca":
        return torch.from_numpy(PCA(2, svd_solver="full").fit_transform(given))
    perplexity = min(30.0, (len(given) - 1) / 3)
    points = TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(given)
    return torch.from_numpy(points).double()


def draw_points(panels: Mapping[str, tuple[Tensor, Tensor]], path: str | Path) -> Path:
    """Draw points in panels side by side, one colour per class.

    Args:
        panels: Title -> points [n, 2] and the class of each, int64 [n].
        path: PNG to write, whole or not at all.

    Examples:
        >>> print(draw_points({"pets": (torch.rand(8, 2), torch.arange(8) % 2)}, "points.png"))
        points.png
    """
    columns = min(len(panels), _IN_A_ROW)
    rows = -(-len(panels) // columns)
    figure = Figure((_INCHES * columns, _INCHES * rows), layout="constrained")
    for place, (title, (points, labels)) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(rows, columns, place)
        x, y = points.T
        axes.scatter(x, y, c=labels % 20, cmap="tab20", vmin=0, vmax=19, s=4, linewidths=0)
        axes.set_title(title, fontsize=8)
        axes.set(xticks=[], yticks=[])
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
    return Path(path)
