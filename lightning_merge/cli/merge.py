"""The merge command: checkpoints in, one checkpoint out."""

import time
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from lightning_merge.core.checkpoint import open_checkpoint, save_checkpoint, select
from lightning_merge.core.errors import InputError
from lightning_merge.core.files import file_hash
from lightning_merge.core.validate import check_experts
from lightning_merge.data.datamodule import MergeDataModule
from lightning_merge.methods.base import MergeMethod
from lightning_merge.models.encoder import Encoder


def merge(
    base: str,
    experts: dict[str, str],
    method: MergeMethod,
    output: str,
    overwrite: bool = False,
    encoder: Encoder | None = None,
    data: MergeDataModule | None = None,
) -> None:
    """Merge fine-tuned experts of one base into one checkpoint.

    Args:
        base: weights of the pretrained network: .safetensors, .pt, .ckpt or a Hub folder.
        experts: file of each expert by task, as in --experts.mnist F --experts.cars F.
        method: how to merge, as in --method Ties --method.density 0.2.
        output: .safetensors file to write.
        overwrite: replace the output if it exists.
        encoder: network of the weights, for methods that run it; what else the files hold, such
            as a text tower, then takes no part.
        data: tasks whose held-out images methods that need images may see.

    Raises:
        InputError: a file is missing or unreadable, experts do not fit the base, the output
            exists, or the method needs a network or images that were not given.
    """
    target = Path(output)
    if target.exists() and not overwrite:
        raise InputError(f"output={output!r} exists: give another path or --overwrite true")
    started = time.perf_counter()
    names = None if encoder is None else encoder.backbone.state_dict()
    weights = open_checkpoint(base, keys=names)
    sources = {
        task: _like(weights, open_checkpoint(file, keys=names)) for task, file in experts.items()
    }
    check_experts(weights, sources, finite=False)  # values are checked as they stream by
    images = None
    if method.needs != "nothing":
        if encoder is None or data is None:
            raise InputError(
                f"method {type(method).__name__} needs {method.needs}: give --encoder and --data"
            )
        data.preprocess = encoder.preprocess
        data.load(test=False)
        images = encoder.preprocess.normalize(data.unlabelled())
    metadata = {
        "method": type(method).__name__,
        "hyperparameters": repr(method),
        "base": file_hash(base),
        **{f"expert/{task}": file_hash(file) for task, file in experts.items()},
    }
    model = encoder.backbone if encoder is not None else None
    stream = method.stream(weights, sources, model=model, batches=images)
    save_checkpoint(stream, target, metadata=metadata, overwrite=overwrite)
    seconds = time.perf_counter() - started
    print(f"{target}: {len(weights)} tensors of {len(sources)} experts in {seconds:.1f} s")


def _like(base: Mapping[str, Tensor], expert: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the expert under the base's names where only a prefix differs."""
    if set(base) == set(expert) or len(base) != len(expert):
        return expert
    return select(expert, base)
