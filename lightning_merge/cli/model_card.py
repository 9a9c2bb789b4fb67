"""The model card of a converted network: README.md with the Hub's metadata."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lightning_merge import __version__
from lightning_merge.core.checkpoints.digests import file_hash
from lightning_merge.core.checkpoints.hub import repository
from lightning_merge.core.errors import InputError
from lightning_merge.evaluation.results import CandidateResult, Results
from lightning_merge.models.library_folder import LibraryFolder

FILE = "README.md"
_INPUTS = ("base", "source", "expert/")
"""Entries of a file's metadata, or their start, that identify what it was made from."""


class Measured(NamedTuple):
    """What a run has measured of a network.

    Attributes:
        results: Results of the run.
        row: Those of the network.
    """

    results: Results
    row: CandidateResult


def measured(path: str, candidate: str, source: str) -> Measured:
    """Read what a run has measured of a network.

    Args:
        path: Run folder, or its results.json.
        candidate: Name of the network in the run's table.
        source: File of the network.

    Raises:
        InputError: There are no results, or none of this network, or the run's file of that name is
            another one.
    """
    file = Path(path, "results.json") if Path(path).is_dir() else Path(path)
    if not file.exists():
        raise InputError(f"results={path!r} has no results: {file} does not exist; finish the run")
    results = Results.from_json(file)
    if candidate not in results.candidates:
        raise InputError(
            f"results={path!r} has no network {candidate!r}: give --candidate, one of "
            f"{', '.join(results.candidates)}"
        )
    own = file.parent / "merged" / f"{candidate}.safetensors"
    if own.exists() and Path(source).is_file() and file_hash(own) != file_hash(source):
        raise InputError(
            f"results={path!r} measured {own}, which is not source={source!r}: give the results of "
            "the run that has made it"
        )
    return Measured(results, results.candidates[candidate])


def model_card(
    name: str,
    folder: LibraryFolder,
    load: str,
    metadata: Mapping[str, str],
    base: str | None = None,
    found: Measured | None = None,
) -> str:
    """Return the text of a model card.

    Args:
        name: Name of the network.
        folder: Its files.
        load: Python expression that loads it.
        metadata: Metadata of its weights, which say how they were made.
        base: Network that completed the weights, as the user gave it.
        found: What was measured of it.
    """
    from huggingface_hub import ModelCardData

    hyperparameters = _as_given(metadata.get("hyperparameters", ""))
    inputs = {key: value for key, value in metadata.items() if key.startswith(_INPUTS)}
    own = {"method": metadata.get("method"), "hyperparameters": hyperparameters, "inputs": inputs}
    bases = _repositories(metadata, base)
    method = [metadata["method"].lower()] if "method" in metadata else []
    data = ModelCardData(
        base_model=bases or None,
        base_model_relation="merge" if bases and method else None,
        library_name=folder.library,
        tags=["merge", "lightning-merge", *method],
        model_name=name,
        eval_results=None if found is None else _eval_results(found, folder),
        lightning_merge={key: value for key, value in own.items() if value},
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {name}",
        _made(metadata),
        f"```python\nimport {folder.library}\n\nmodel = {load}\n```",
        "" if found is None else _table(found),
        _inputs(inputs),
        f"Written by lightning-merge {__version__}.",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _as_given(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _repositories(metadata: Mapping[str, str], base: str | None) -> list[str]:
    """Return the repositories of the Hub that the network was made from."""
    recorded = _as_given(metadata.get("repositories", "{}"))
    given = [*recorded.values(), *([] if base is None else [base])]
    found = (repository(name) for name in given if isinstance(name, str))
    return [*dict.fromkeys(one.name for one in found if one is not None)]


def _made(metadata: Mapping[str, str]) -> str:
    if "method" not in metadata:
        return "Weights that lightning-merge has converted."
    experts = sum(key.startswith("expert/") for key in metadata)
    return (
        f"One network, merged from {experts} fine-tuned experts of one base by "
        f"`{metadata['method']}`:\n\n```\n{metadata.get('hyperparameters', '')}\n```"
    )


def _eval_results(found: Measured, folder: LibraryFolder) -> list[Any]:
    from huggingface_hub import EvalResult

    texts = folder.library == "transformers" and not folder.kind.startswith("CLIP")

    return [
        EvalResult(
            task_type="text-classification" if texts else "image-classification",
            dataset_type=task,
            dataset_name=task,
            dataset_split="test",
            metric_type="accuracy",
            metric_value=accuracy,
        )
        for task, accuracy in found.row.accuracy.items()
    ]


def _table(found: Measured) -> str:
    """Return accuracies with intervals and sample counts, and what a reader must know."""
    row = found.row
    lines = ["| task | accuracy | 95 % interval | test examples |", "| --- | ---: | ---: | ---: |"]
    for task, accuracy in row.accuracy.items():
        ends = row.intervals.get(task)
        shown = "" if ends is None else f"{100 * ends.low:.1f} to {100 * ends.high:.1f}"
        lines.append(f"| {task} | {100 * accuracy:.1f} % | {shown} | {row.samples[task]} |")
    for name, average in found.results.averages(row.name).items():
        lines.append(f"| {name} | {100 * average:.1f} % | | |")
    notes = [row.note, "Test examples were seen, without labels." * row.transductive]
    notes += [
        f"Test split made by lightning-merge: {', '.join(found.results.own_split)}."
        if found.results.own_split
        else "",
        *found.results.notes,
    ]
    return "\n".join([*lines, "", *(f"* {note}" for note in notes if note)])


def _inputs(inputs: Mapping[str, str]) -> str:
    if not inputs:
        return ""
    rows = "\n".join(f"| {name} | `{digest}` |" for name, digest in inputs.items())
    return f"Made from files with these digests:\n\n| file | digest |\n| --- | --- |\n{rows}"
