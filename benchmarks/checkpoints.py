"""Random checkpoints in the layout of real visual towers: a base and experts near it."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

RECIPE = "base N(0, 0.02), experts base + N(0, s), seed 0, form 2"


@dataclass(frozen=True)
class Tower:
    """The sizes that determine names and shapes of open_clip's CLIP visual tower."""

    width: int
    layers: int
    patch: int
    image: int
    embed: int

    def layout(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor by name, in the order of open_clip's state dict."""
        wide, tokens = self.width, (self.image // self.patch) ** 2 + 1
        shapes: dict[str, tuple[int, ...]] = {
            "class_embedding": (wide,),
            "positional_embedding": (tokens, wide),
            "proj": (wide, self.embed),
            "conv1.weight": (wide, 3, self.patch, self.patch),
            **_norm("ln_pre", wide),
        }
        for block in range(self.layers):
            at = f"transformer.resblocks.{block}"
            shapes |= _norm(f"{at}.ln_1", wide)
            shapes |= {
                f"{at}.attn.in_proj_weight": (3 * wide, wide),
                f"{at}.attn.in_proj_bias": (3 * wide,),
            }
            shapes |= _linear(f"{at}.attn.out_proj", wide, wide)
            shapes |= _norm(f"{at}.ln_2", wide)
            shapes |= _linear(f"{at}.mlp.c_fc", 4 * wide, wide)
            shapes |= _linear(f"{at}.mlp.c_proj", wide, 4 * wide)
        return shapes | _norm("ln_post", wide)


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _linear(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


TOWERS = {
    "tiny": Tower(width=64, layers=4, patch=8, image=32, embed=32),
    "vit_b32": Tower(width=768, layers=12, patch=32, image=224, embed=512),
    "vit_h14": Tower(width=1280, layers=32, patch=14, image=224, embed=1024),
}


@dataclass(frozen=True)
class Checkpoints:
    """The files of one base and of its experts by task."""

    base: Path
    experts: dict[str, Path]

    @property
    def files(self) -> list[Path]:
        """All files, the base first."""
        return [self.base, *self.experts.values()]


def make_checkpoints(folder: Path, tower: Tower, experts: int = 8) -> Checkpoints:
    """Write base and experts as float32 safetensors, or reuse those of an earlier call.

    Distances from the base vary by expert and by layer: the standard deviation of the noise is
    0.001, times a factor in [1/2, 2] per expert, one in [1/2, 2] per tensor, and one in
    [1/1.1, 1.1] per expert and tensor.

    Args:
        folder: Folder for the files; created if missing.
        tower: Layout of the network.
        experts: Number of experts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = Checkpoints(
        folder / "base.safetensors",
        {f"task{k}": folder / f"expert{k}.safetensors" for k in range(experts)},
    )
    missing = [k for k, file in enumerate(found.experts.values()) if not _is_made(file)]
    if missing or not _is_made(found.base):
        base = {
            name: _normal(shape, f"base/{name}").mul_(0.02).add_(_centre(name))
            for name, shape in tower.layout().items()
        }
        _save(base, found.base)
        for k in missing:
            _save(_expert(base, k), found.experts[f"task{k}"])
    return found


def _expert(base: dict[str, Tensor], k: int) -> dict[str, Tensor]:
    scales = (_spread(f"expert{k}", 2), 0.001)
    return {
        name: _normal(tensor.shape, f"expert{k}/{name}")
        .mul_(scales[0] * scales[1] * _spread(name, 2) * _spread(f"{k}/{name}", 1.1))
        .add_(tensor)
        for name, tensor in base.items()
    }


def _centre(name: str) -> float:
    """Return the mean of a tensor: 1 for normalisation gains, so that the network can run."""
    return 1.0 if ".ln_" in f".{name}" and name.endswith("weight") else 0.0


def _spread(key: str, most: float) -> float:
    """Return a factor in [1 / most, most], log-uniform and determined by the key."""
    return most ** (2 * torch.rand((), generator=_generator(f"spread/{key}")).item() - 1)


def _normal(shape: tuple[int, ...], key: str) -> Tensor:
    return torch.randn(shape, generator=_generator(key))


def _generator(key: str) -> torch.Generator:
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"recipe": RECIPE})
    os.replace(partial, path)


def _is_made(path: Path) -> bool:
    if not path.is_file():
        return False
    with safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get("recipe") == RECIPE
