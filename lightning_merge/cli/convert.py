"""The convert command: weights of this package as a folder or file of another library."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from lightning_merge.cli.model_card import FILE, Measured, measured, model_card
from lightning_merge.cli.parser import Parser, plain
from lightning_merge.cli.push import check_name, push
from lightning_merge.cli.usage import program
from lightning_merge.cli.words import plain_words
from lightning_merge.core.checkpoints.checkpoint import Checkpoint
from lightning_merge.core.checkpoints.digests import file_record
from lightning_merge.core.checkpoints.files import atomic_folder, atomic_write
from lightning_merge.core.checkpoints.library import libraries_of, loading
from lightning_merge.core.checkpoints.writer import CheckpointWriter
from lightning_merge.core.errors import InputError
from lightning_merge.core.vectors.completed import completed
from lightning_merge.core.vectors.towers import summary
from lightning_merge.models.encoder import Encoder
from lightning_merge.models.encoder_options import EncoderOptions, encoder_of_run
from lightning_merge.models.library_folder import Given, LibraryFolder
from lightning_merge.models.to_open_clip import to_open_clip
from lightning_merge.models.to_timm import to_timm
from lightning_merge.models.to_transformers import to_transformers

Target = Literal["open_clip", "transformers", "timm", "torch", "safetensors"]
Make = Callable[[Given, Given | None, EncoderOptions | None], LibraryFolder]
FOLDERS: dict[str, Make] = {
    "open_clip": to_open_clip,
    "transformers": to_transformers,
    "timm": to_timm,
}
SUFFIXES = {"torch": (".pt", ".pth", ".bin"), "safetensors": (".safetensors",)}


def run(arguments: Sequence[str]) -> None:
    """Run the convert command; the encoder is described by its options and not built.

    Args:
        arguments: The words after `convert`; the first may be the source.
    """
    first, *rest = arguments or [""]
    words = ["--source", first, *rest] if first and not first.startswith("-") else arguments
    parser = Parser(prog=f"{program()} convert", description=(convert.__doc__ or "").split("\n")[0])
    parser.add_argument("--config", action="config", help="YAML file of options")
    parser.add_function_arguments(convert, as_group=False)
    config = plain(parser.parse_args(plain_words(["convert", *words])[1:]))
    config.pop("config", None)
    convert(**config)


def convert(
    source: str,
    to: Target,
    output: str,
    base: str | None = None,
    encoder: Encoder | None = None,
    overwrite: bool = False,
    results: str | None = None,
    candidate: str | None = None,
    push_to_hub: str | None = None,
    public: bool = False,
) -> None:
    """Convert merged or learned weights to a folder or file of another library.

    Args:
        source: Weights: .safetensors, .pt, .ckpt, a Hub folder, or a name on the Hub.
        to: Library whose folder is written: open_clip, transformers or timm; or torch for a state
            dict, safetensors for one file of weights.
        output: Folder to write; for torch and safetensors, file.
        base: Network that the weights come from, which has what they lack, such as a text tower,
            tokenizer or configuration: a folder, file, or name on the Hub.
        encoder: Network that the weights belong to, if no folder describes it. It is not built.
            Weights in a run folder have that of the run.
        overwrite: Replace the output if it exists.
        results: Run folder or its results.json, whose accuracies go into the model card.
        candidate: Name of the network in these results; by default that of the source's file.
        push_to_hub: Repository user/name on the Hugging Face Hub to which the folder is uploaded,
            a private one.
        public: Make the repository public.

    Raises:
        InputError: A file is missing or unreadable, nothing describes the network, weights do not
            fit it, the output exists, or the Hub refuses.
    """
    target = Path(output)
    check_name(push_to_hub, public)
    found = None if results is None else measured(results, candidate or Path(source).stem, source)
    _check_output(target, to, overwrite)
    given = Given.open(source, "--source")
    whole = None if base is None else Given.open(base, "--base")
    if to not in FOLDERS:
        _check_folder_only(to, results=results, push_to_hub=push_to_hub)
        _check_inputs(target, _inputs(given, whole, None))
        _write_file(target, to, given, whole, overwrite)
        return
    options = _options(encoder) or _run_of(given)
    _check_inputs(target, _inputs(given, whole, options))
    folder = FOLDERS[to](given, whole, options)
    metadata = {**given.weights.metadata, "source": file_record(source, "sample")}
    texts = {**folder.texts, FILE: _card(folder, metadata, target, base, found, push_to_hub)}
    with atomic_folder(target, overwrite=overwrite) as place:
        _write_weights(folder.weights, place / folder.file, metadata)
        for name, text in texts.items():
            (place / name).write_text(text, encoding="utf-8")
        for file in folder.copies:
            shutil.copyfile(file, place / file.name)
        _check_unchanged(given, whole)
    _tell(target, folder.weights, folder.kept, whole)
    print(f"to load it: {loading(folder.library, target, folder.kind)}")
    if push_to_hub is not None:
        print(f"uploaded to {push(target, push_to_hub, public, overwrite)}")


def _card(
    folder: LibraryFolder,
    metadata: Mapping[str, str],
    target: Path,
    base: str | None,
    found: Measured | None,
    push_to_hub: str | None,
) -> str:
    """Return the model card of a folder, which loads it from where it will be."""
    name = target.absolute().name if push_to_hub is None else push_to_hub.partition("/")[2]
    load = loading(folder.library, push_to_hub or name, folder.kind, hub=push_to_hub is not None)
    return model_card(name, folder, load, metadata, base, found)


def _check_folder_only(to: Target, **given: str | None) -> None:
    for name, value in given.items():
        if value is not None:
            raise InputError(
                f"{name}={value!r} is for folders: give --to {', '.join(FOLDERS)}, or leave it out"
            )


def _options(encoder: Any) -> EncoderOptions | None:
    """Return the encoder of the command line, which is not built."""
    return None if encoder is None else EncoderOptions.of(encoder)


def _run_of(given: Given) -> EncoderOptions | None:
    """Return the encoder of the run that has written the source."""
    return None if given.weights.path is None else encoder_of_run(given.weights.path)


def _write_file(
    target: Path, to: Target, given: Given, base: Given | None, overwrite: bool
) -> None:
    """Write a file of weights under the names of the base, or of the source without one."""
    weights, kept = given.weights, list[str]()
    if base is not None:
        weights, kept = completed(base.weights, given.weights)
    if to == "torch":
        with atomic_write(target, overwrite=overwrite) as temporary:
            torch.save({name: weights[name].clone() for name in weights}, temporary)
        load = f"network.load_state_dict(torch.load({str(target)!r}))"
    else:
        record = file_record(given.name, "sample")
        _write_weights(weights, target, {**weights.metadata, "source": record}, overwrite)
        load = f"network.load_state_dict(safetensors.torch.load_file({str(target)!r}))"
    _tell(target, weights, kept, base)
    print(f"to load it: {load}")


def _write_weights(
    weights: Checkpoint, file: Path, metadata: Mapping[str, str], overwrite: bool = False
) -> None:
    layout = {name: (weights.dtype(name), weights.shape(name)) for name in weights}
    with CheckpointWriter(file, layout, metadata=metadata, overwrite=overwrite) as writer:
        for name in weights:
            writer.write(name, 0, weights[name].reshape(-1))


def _check_unchanged(*given: Given | None) -> None:
    for one in given:
        if one is not None:
            one.weights.check_unchanged()


def _tell(target: Path, weights: Checkpoint, kept: Sequence[str], base: Given | None) -> None:
    """Say what was written, and what of it is not the source's."""
    print(f"{target}: {len(weights)} tensors")
    if kept:
        origin = f"from {base.name}" if base is not None else "from the network that describes it"
        print(f"not in the source, so {origin}: {summary(kept)}")


def _inputs(given: Given, base: Given | None, options: EncoderOptions | None) -> list[str | Path]:
    """Return what is read: names as they were given, and files that were opened."""
    found: list[str | Path] = []
    for one in (given, base):
        if one is not None:
            found += [one.name, *([] if one.weights.path is None else [one.weights.path])]
    read = [] if options is None else [options.options.get(key) for key in options.kind.reads]
    return [*found, *(name for name in read if isinstance(name, str))]


def _check_inputs(target: Path, inputs: Sequence[str | Path]) -> None:
    """Check that the output would not replace what is read."""
    if not target.exists():
        return
    own = target.resolve()
    for name in inputs:
        place = Path(name)
        if place.exists() and (
            own in (read := place.resolve(), read.parent)
            or read in own.parents
            or own in read.parents
        ):
            raise InputError(
                f"output={str(target)!r} is that of {str(name)!r}, or holds it, or lies in it: "
                "give another path"
            )


def _check_output(target: Path, to: Target, overwrite: bool) -> None:
    """Check the output's name, and that it may be replaced if it exists."""
    shown = f"output={str(target)!r}"
    if to in SUFFIXES and target.suffix not in SUFFIXES[to]:
        raise InputError(f"{shown}: --to {to} writes a file: name it *{SUFFIXES[to][0]}")
    if not target.exists():
        return
    if not overwrite:
        raise InputError(f"{shown} exists: give another path or --overwrite true")
    if to in SUFFIXES:
        return
    if not target.is_dir():
        raise InputError(f"{shown} is a file; --to {to} writes a folder: give another path")
    if any(target.iterdir()) and (
        not libraries_of(target) or any(file.is_dir() for file in target.iterdir())
    ):
        raise InputError(f"{shown} holds other things than a network: give another path")
