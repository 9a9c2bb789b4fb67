"""Random numbers that depend on what they are for, not on when they are sampled."""

import hashlib
import os

import torch
from torch import Tensor

_BLOCK = 2**16


def run_seed() -> int:
    """Return the seed of the run, as lightning's seed_everything leaves it; 0 without one."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


def generator_for(seed: int, *names: str) -> torch.Generator:
    """Return a CPU generator seeded by a number and names, for example of a task and a tensor."""
    text = "\0".join([str(seed), *names])
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def uniform_numbers(start: int, stop: int, seed: int, *names: str) -> Tensor:
    """Entries [start, stop) of an endless sequence of uniform numbers in [0, 1), float32.

    The sequence belongs to the seed and the names. It is sampled in blocks, each with a generator
    of its own, so that any part can be had without what comes before it.
    """
    first, last = start // _BLOCK, -(-stop // _BLOCK)
    blocks = [
        torch.rand(_BLOCK, generator=generator_for(seed, *names, str(block)))
        for block in range(first, max(last, first + 1))
    ]
    return torch.cat(blocks)[start - first * _BLOCK : stop - first * _BLOCK]
