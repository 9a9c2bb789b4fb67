"""Random numbers that depend on their purpose, not on the order of sampling."""

import hashlib
import os

import torch
from torch import Tensor

_BLOCK = 2**16


def run_seed() -> int:
    """Return the seed of the run, as Lightning's `seed_everything` sets it; 0 if it was not called.

    Examples:
        >>> os.environ["PL_GLOBAL_SEED"] = "7"
        >>> run_seed()
        7
        >>> del os.environ["PL_GLOBAL_SEED"]
        >>> run_seed()
        0
    """
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


def generator_for(seed: int, *names: str) -> torch.Generator:
    """Return a CPU generator seeded by a number and by names, such as those of a task and a tensor.

    Args:
        seed: The seed of the run.
        names: What the numbers are for; other names give other numbers.

    Examples:
        >>> one, same, other = (generator_for(0, name) for name in ("mnist", "mnist", "cars"))
        >>> one.initial_seed() == same.initial_seed() != other.initial_seed()
        True
    """
    text = "\0".join([str(seed), *names])
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def uniform_numbers(start: int, stop: int, seed: int, *names: str) -> Tensor:
    """Return entries [start, stop) of an endless sequence of uniform numbers in [0, 1), float32.

    The sequence belongs to the seed and the names. It is sampled in blocks, each with its own
    generator, so that any part is available without what comes before it.

    Args:
        start: First entry.
        stop: End of the entries.
        seed: The seed of the run.
        names: What the numbers are for.

    Returns:
        [stop - start].

    Examples:
        >>> whole = uniform_numbers(0, 5, 0, "mnist")
        >>> torch.equal(uniform_numbers(2, 5, 0, "mnist"), whole[2:])
        True
    """
    first, last = start // _BLOCK, -(-stop // _BLOCK)
    blocks = [
        torch.rand(_BLOCK, generator=generator_for(seed, *names, str(block)))
        for block in range(first, max(last, first + 1))
    ]
    return torch.cat(blocks)[start - first * _BLOCK : stop - first * _BLOCK]
