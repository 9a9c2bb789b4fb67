"""Figures of a run, written as PNG without pyplot's global state.

Separate functions compute the plotted values, so that tests can check them as numbers.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, CenteredNorm, ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from lightning_merge.core.checkpoints.files import atomic_write
from lightning_merge.core.checks import require_in
from lightning_merge.core.errors import InputError

DIVERGING = "PuOr"
SEQUENTIAL = "viridis"
PRUNED_KEPT = ListedColormap(["#e6e6e6", "#21618c"])
_NOTHING = "#d0d0d0"  # cells without a value
_DPI = 150
_FONT = 7.0  # points
_BESIDE = 3.0  # inches for row labels and the colour bar
_WIDEST, _HIGHEST = 16.0, 24.0  # inches


def coefficient_heatmap(
    coefficients: Tensor,
    tasks: Sequence[str],
    layers: Sequence[str],
    path: str | Path,
    *,
    centre: float = 0.0,
) -> Path:
    """Draw merging coefficients, one row per task and one column per layer.

    Args:
        coefficients: [K, L], no unit.
        tasks: K names.
        layers: L names, in network order.
        path: PNG to write, whole or not at all.
        centre: Value of the neutral colour: 0 shows sign and size, the prior shows the change
            by learning.

    Raises:
        InputError: The names do not fit the shape.

    Examples:
        >>> coefficients = torch.tensor([[0.3, -0.1, 0.2], [0.0, 0.4, 0.1]])
        >>> layers = ["stem", "block", "head"]
        >>> print(coefficient_heatmap(coefficients, ["mnist", "cars"], layers, "heatmap.png"))
        heatmap.png
    """
    _check_shape("coefficients", coefficients, len(tasks), len(layers))
    figure, (axes,) = _panels([len(tasks)], len(layers), layers)
    norm = CenteredNorm(centre, halfrange=_halfrange(coefficients, centre))
    image = _draw(axes, coefficients, DIVERGING, norm)
    _name_rows(axes, tasks)
    _name_columns(figure, axes, layers)
    _colour_bar(figure, axes, image, "coefficient")
    return _write(figure, path)


def m_loss_map(losses: Mapping[str, Tensor], path: str | Path, *, group: int = 50) -> Path:
    """Draw the M-Loss of nodes, one row per layer, in groups of neighbouring nodes.

    Args:
        losses: Node losses [d] by layer, in network order; widths may differ.
        path: PNG to write, whole or not at all.
        group: Nodes averaged into one column.

    Raises:
        InputError: Losses are empty or not vectors, or group is below 1.

    Examples:
        >>> losses = {"fc1": torch.rand(8), "fc2": torch.rand(4)}
        >>> print(m_loss_map(losses, "m_loss.png", group=2))
        m_loss.png
    """
    means = group_means(losses, group)
    layers = list(losses)
    figure, (axes,) = _panels([len(layers)], means.shape[1])
    image = _draw(axes, means, SEQUENTIAL)
    _name_rows(axes, layers)
    axes.set_xlabel(f"group of {group} nodes", fontsize=_FONT + 1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _colour_bar(figure, axes, image, "mean node M-Loss")
    return _write(figure, path)


def pairwise_matrix(values: Tensor, names: Sequence[str], path: str | Path, label: str) -> Path:
    """Draw a number for every pair, written in its cell.

    Args:
        values: [K, K]; the diagonal is left out.
        names: K names.
        path: PNG to write, whole or not at all.
        label: Quantity that the numbers measure.

    Raises:
        InputError: The names do not fit the shape.

    Examples:
        >>> distances = torch.tensor([[0.0, 0.7], [0.7, 0.0]])
        >>> pairwise_matrix(distances, ["mnist", "cars"], "pairs.png", "M-Loss").exists()
        True
    """
    _check_shape("values", values, len(names), len(names))
    side = min(_BESIDE + 0.45 * len(names), _WIDEST)
    figure = Figure(figsize=(max(side, 6.0), max(side - 1, 4.0)), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    pairs = values.detach().float().masked_fill(torch.eye(len(names), dtype=torch.bool), torch.nan)
    image = _draw(axes, pairs, SEQUENTIAL)
    middle = (pairs.nan_to_num(torch.inf).min() + pairs.nan_to_num(-torch.inf).max()) / 2
    for row, column in itertools.permutations(range(len(names)), 2):
        colour = "white" if pairs[row, column] <= middle else "black"
        text = f"{pairs[row, column]:.3g}"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=_FONT - 1)
    _name_rows(axes, names)
    _name_columns(figure, axes, names)
    _colour_bar(figure, axes, image, label)
    return _write(figure, path)


def lwptv_figure(
    scores: Tensor,
    masks: Tensor,
    shared: Tensor,
    tasks: Sequence[str],
    layers: Sequence[str],
    path: str | Path,
) -> Path:
    """Draw LwPTV's scores above the resulting masks.

    Args:
        scores: [K, L], mean distance of a task vector from the mean task vector.
        masks: Bool [K, L], layers that each task keeps.
        shared: Bool [L], layers that any task keeps.
        tasks: K names.
        layers: L names, in network order.
        path: PNG to write, whole or not at all.

    Raises:
        InputError: The names do not fit the shapes.

    Examples:
        >>> scores, masks = torch.tensor([[0.1, 0.9]]), torch.tensor([[False, True]])
        >>> lwptv_figure(scores, masks, masks[0], ["mnist"], ["stem", "head"], "lwptv.png").exists()
        True
    """
    _check_shape("scores", scores, len(tasks), len(layers))
    _check_shape("masks", masks, len(tasks), len(layers))
    kept = mask_rows(masks, shared)
    heights = [len(tasks), len(kept)]
    figure, (upper, lower) = _panels(heights, len(layers), layers)
    image = _draw(upper, scores, SEQUENTIAL, _log_norm(scores))
    upper.set_xticks([])
    _name_rows(upper, tasks)
    _colour_bar(figure, upper, image, "score")
    image = _draw(lower, kept, PRUNED_KEPT, BoundaryNorm([0, 0.5, 1], 2))
    lower.axhline(len(tasks) - 0.5, color="white", linewidth=2)
    _name_rows(lower, [*tasks, f"shared ({int(shared.sum())} of {len(layers)})"])
    _name_columns(figure, lower, layers)
    bar = _colour_bar(figure, lower, image, "")
    bar.set_yticks([0.25, 0.75], ["pruned", "kept"])
    return _write(figure, path)


def group_means(losses: Mapping[str, Tensor], group: int) -> Tensor:
    """Return the mean loss of each group of neighbouring nodes, the last group holding the rest.

    Args:
        losses: Node losses [d] by layer.
        group: Number of nodes per group.

    Returns:
        float32 [layers, groups of the widest layer]; NaN where a layer has no nodes.

    Raises:
        InputError: Losses are empty or not vectors, or group is below 1.

    Examples:
        >>> group_means({"fc1": torch.tensor([1.0, 3.0, 5.0]), "fc2": torch.tensor([4.0])}, 2)
        tensor([[2., 5.], [4., nan]])
    """
    require_in("[1, inf)", group=group)
    if not losses or any(loss.ndim != 1 or not len(loss) for loss in losses.values()):
        shapes = {layer: tuple(loss.shape) for layer, loss in losses.items()}
        raise InputError(f"losses has shapes {shapes}: give a vector of node losses per layer")
    widest = max(len(loss) for loss in losses.values())
    means = torch.full((len(losses), -(-widest // group)), torch.nan)
    for row, loss in zip(means, losses.values(), strict=True):
        groups = loss.detach().float().cpu().split(group)
        row[: len(groups)] = torch.stack([nodes.mean() for nodes in groups])
    return means


def mask_rows(masks: Tensor, shared: Tensor) -> Tensor:
    """Return the masks of the tasks and the shared mask below: int64 [K + 1, L], 1 where kept.

    Examples:
        >>> mask_rows(torch.tensor([[True, False]]), shared=torch.tensor([True, True]))
        tensor([[1, 0], [1, 1]])
    """
    _check_shape("shared", shared, masks.shape[1])
    return torch.cat([masks, shared[None]]).long()


def _check_shape(name: str, values: Tensor, *expected: int) -> None:
    if tuple(values.shape) != expected or 0 in expected:
        raise InputError(
            f"{name} has shape {tuple(values.shape)}, but the names require {expected}: "
            "give one row per task and one column per layer"
        )


def _panels(
    rows: Sequence[int], columns: int, labels: Sequence[str] = ()
) -> tuple[Figure, list[Axes]]:
    """Return a figure of stacked panels, sized for its rows, columns and column labels."""
    width = min(_BESIDE + 0.11 * columns, _WIDEST)
    below = 0.05 * max(map(len, short_names(labels)), default=10)
    height = min(sum(0.4 + 0.2 * count for count in rows) + below, _HIGHEST)
    figure = Figure(figsize=(max(width, 6.0), max(height, 2.0)), dpi=_DPI, layout="constrained")
    axes = figure.subplots(len(rows), 1, squeeze=False, height_ratios=list(rows))
    return figure, list(axes[:, 0])


def _draw(
    axes: Axes, values: Tensor, colours: str | ListedColormap, norm: Normalize | None = None
) -> AxesImage:
    axes.set_facecolor(_NOTHING)
    axes.tick_params(labelsize=_FONT, length=2)
    array = values.detach().float().cpu().numpy()
    return axes.imshow(array, cmap=colours, norm=norm, aspect="auto", interpolation="nearest")


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    shown = _thin(len(names), _HIGHEST)
    axes.set_yticks(shown, short_names(names)[shown.start :: shown.step])


def _name_columns(figure: Figure, axes: Axes, names: Sequence[str]) -> None:
    width, _ = figure.get_size_inches()
    shown = _thin(len(names), width - _BESIDE)
    axes.set_xticks(shown, short_names(names)[shown.start :: shown.step], rotation=90)


def _thin(count: int, inches: float) -> range:
    """Return every n-th of ``count`` labels, so that they do not overlap in that space."""
    fitting = int(inches * 72 / (1.2 * _FONT))
    return range(0, count, -(-count // fitting))


def short_names(names: Sequence[str]) -> list[str]:
    """Return names as labels: without the common prefix of numbered ones, and with long ones cut.

    Examples:
        >>> short_names(["stem.weight", "vit.blocks.0.fc1.weight", "vit.blocks.1.fc1.weight"])
        ['stem.weight', '…0.fc1.weight', '…1.fc1.weight']
    """
    numbered = [name for name in names if any(part.isdigit() for part in name.split("."))]
    levels = zip(*(name.split(".")[:-1] for name in numbered), strict=False)
    shared = itertools.takewhile(lambda parts: len(set(parts)) == 1, levels)
    stem = "".join(f"{parts[0]}." for parts in shared)
    if stem and len(numbered) > 1:
        names = [name.replace(stem, "…", 1) if name in numbered else name for name in names]
    return [name if len(name) <= 36 else f"{name[:12]}…{name[-23:]}" for name in names]


def _halfrange(values: Tensor, centre: float) -> float:
    """Return the largest distance from the centre, or 1 if all values equal it."""
    return float((values.detach() - centre).abs().max()) or 1.0


def _log_norm(values: Tensor) -> Normalize | None:
    """Return logarithmic colours over the positive values; None (linear) if they do not differ."""
    positive = values[values > 0]
    if not len(positive) or positive.min() == positive.max():
        return None
    return LogNorm(float(positive.min()), float(positive.max()))


def _colour_bar(figure: Figure, axes: Axes, image: AxesImage, label: str) -> Axes:
    bar = figure.colorbar(image, ax=axes, pad=0.01, aspect=12)
    bar.set_label(label, fontsize=_FONT + 1)
    bar.ax.tick_params(labelsize=_FONT, length=2)
    return bar.ax


def _write(figure: Figure, path: str | Path) -> Path:
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")
    return Path(path)
