"""The mergeability command: M-Loss of experts, before anything is merged."""

import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from torch import Tensor

from lightning_merge.core.checkpoints.digests import file_fingerprint
from lightning_merge.core.checkpoints.files import write_text
from lightning_merge.core.checkpoints.hub import given_as
from lightning_merge.core.device import run_device
from lightning_merge.core.errors import InputError
from lightning_merge.core.networks.joined import joined
from lightning_merge.core.networks.mergeability import LayerInputs, Mergeability
from lightning_merge.core.networks.mergeability import mergeability as measure
from lightning_merge.data.datamodule import MergeDataModule
from lightning_merge.evaluation.figures import m_loss_map, pairwise_matrix
from lightning_merge.models.encoder import Encoder

FILES = ("mergeability.json", "nodes.png", "pairwise.png")
_COLUMNS = 64  # groups of nodes across the figure


def mergeability(
    base: str,
    experts: dict[str, str],
    encoder: Encoder,
    data: MergeDataModule,
    layer_inputs: LayerInputs = "merged",
    device: str | None = None,
    output: str | None = None,
    overwrite: bool = False,
) -> None:
    """Show how well experts will merge: their M-Loss on unlabelled held-out images.

    Lower is better. Numbers without a unit are relative to the merged layer's output. "relative"
    divides means over samples, and is used for pairs and experts. "normalised" divides sample by
    sample, as in the paper; a few samples with near-zero layer outputs may dominate it.

    Args:
        base: Weights of the pretrained network: .safetensors, .pt, .ckpt or a Hub folder.
        experts: File of each expert by task, as in --experts.mnist F --experts.cars F.
        encoder: Network that the weights belong to.
        data: Tasks whose held-out images are used, data.unlabelled_inputs in all, less those of
            tasks without an expert.
        layer_inputs: Where the inputs for comparing layers come from: the "merged" network, which
            is the mean of all experts, or the "base".
        device: Device to run the network on, such as cpu or cuda:1; by default a CUDA GPU if
            there is one.
        output: Folder for mergeability.json, nodes.png and pairwise.png.
        overwrite: Replace these files if they exist.

    Raises:
        InputError: A file is missing or unreadable, weights do not fit, the data has none of the
            experts' tasks, the device does not exist, or the output exists.
    """
    encoder.to(run_device(device))
    folder = None if output is None else Path(output)
    _check_output(folder, overwrite)
    started = time.perf_counter()
    opened = {}
    for task, file in experts.items():
        with given_as(f"--experts.{task}"):
            opened[task] = encoder.fitting(file)
    with given_as("--base"):
        weights = encoder.fitting(base)
    data.only(experts)
    data.preprocess = encoder.preprocess
    data.load(test=False)
    sampled = data.unlabelled_by_task()
    inputs = encoder.preprocess.finish(joined(sampled.values()))
    found = measure(weights, opened, encoder.backbone, inputs, layer_inputs)
    where = next(encoder.parameters()).device
    show(tables(found))
    if folder is not None:
        origin = {"base": file_fingerprint(base)}
        origin |= {f"expert/{task}": file_fingerprint(file) for task, file in experts.items()}
        counts = {task: len(part) for task, part in sampled.items()}
        about = {"layer_inputs": layer_inputs, "images": counts, "files": origin}
        write(found, folder, {**about, "device": str(where)})
    seconds = time.perf_counter() - started
    print(
        f"{folder or 'M-Loss'}: {len(found.layers)} layers of {len(experts)} experts on "
        f"{len(inputs)} {encoder.preprocess.kind} in {seconds:.1f} s on {where}"
    )


def show(found: Iterable[Table]) -> None:
    """Print tables at full width; a narrower terminal may wrap their lines."""
    console = Console(markup=False, emoji=False)
    for table in found:
        unlimited = console.options.update(max_width=10_000)
        console.width = Measurement.get(console, unlimited, table).maximum
        console.print(table)


def tables(found: Mergeability) -> list[Table]:
    """Return the tables of layers, pairs and experts."""
    layers = _table("M-Loss by layer", "layer", "activation", "nodes", *_LAYER_COLUMNS)
    for name, layer in found.layers.items():
        values = _layer_values(layer.all).values()
        layers.add_row(name, layer.activation, str(len(layer.all.node)), *_numbers(values))
    pairs = _table("M-Loss of pairs, relative, mean over layers", "expert", *found.tasks)
    for row, (task, values) in enumerate(zip(found.tasks, found.pairwise.tolist(), strict=True)):
        cells = list(_numbers(values))
        cells[row] = "-"
        pairs.add_row(task, *cells)
    experts = _table("M-Loss of experts, as above", "expert", "mean of its pairs")
    for task, value in found.experts.items():
        experts.add_row(task, *_numbers([value]))
    experts.add_section()
    experts.add_row("all together", *_numbers([found.overall]))
    return [layers, pairs, experts]


_LAYER_COLUMNS = (
    *("layer M-Loss", "relative", "normalised"),
    *("node mean", "node max", "node normalised"),
)


def _layer_values(losses: Any) -> dict[str, float]:
    """Return the values of one layer in the table, by column."""
    found = (
        losses.layer,
        losses.layer_relative,
        losses.layer_normalized,
        losses.node.mean(),
        losses.node.max(),
        losses.node_normalized.mean(),
    )
    return dict(zip(_LAYER_COLUMNS, map(float, found), strict=True))


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="left" if name == "activation" else "right")
    return table


def _numbers(values: Iterable[float]) -> Iterable[str]:
    return (f"{value:.3g}" for value in values)


def write(found: Mergeability, folder: Path, about: dict[str, Any]) -> None:
    """Write all numbers as JSON, and the figures; each file is written atomically.

    Args:
        found: The measurements.
        folder: Target folder; created if missing.
        about: How the measurements were made, for the record.
    """
    write_text(folder / FILES[0], json.dumps({**about, **as_json(found)}, indent=1))
    nodes = {name: layer.all.node for name, layer in found.layers.items()}
    group = -(-max(map(len, nodes.values())) // _COLUMNS)
    m_loss_map(nodes, folder / FILES[1], group=group)
    pairwise_matrix(found.pairwise, found.tasks, folder / FILES[2], "relative M-Loss of the pair")


def as_json(found: Mergeability) -> dict[str, Any]:
    """Return all numbers down to single nodes, in six digits; `*_normalized` as in the paper."""
    return {
        "tasks": list(found.tasks),
        "overall": found.overall,
        "overall_normalized": found.overall_normalized,
        "experts": found.experts,
        "pairwise": _rounded(found.pairwise),
        "pairwise_normalized": _rounded(found.pairwise_normalized),
        "layers": {
            name: {
                "activation": layer.activation,
                **{key: _rounded(value) for key, value in layer.all._asdict().items()},
                "layer_relative": _rounded(layer.all.layer_relative),
                "pairwise": _rounded(layer.pairwise),
                "pairwise_relative": _rounded(layer.pairwise_relative),
                "pairwise_normalized": _rounded(layer.pairwise_normalized),
            }
            for name, layer in found.layers.items()
        },
    }


def _rounded(values: Tensor) -> Any:
    def shorten(value: float | Sequence[Any]) -> Any:
        return float(f"{value:.6g}") if isinstance(value, float) else [*map(shorten, value)]

    return shorten(values.tolist())


def _check_output(folder: Path | None, overwrite: bool) -> None:
    if folder is None:
        return
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output={str(folder)!r} is a file: give a folder")
    there = [name for name in FILES if (folder / name).exists()]
    if there and not overwrite:
        raise InputError(
            f"output={str(folder)!r} has {', '.join(there)}: give another folder or "
            "--overwrite true"
        )
