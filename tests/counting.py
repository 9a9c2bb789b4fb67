"""Checkpoints that count how much of them is read."""

import math

from lightning_merge.core.checkpoints.checkpoint import Checkpoint, as_checkpoint
from lightning_merge.core.vectors.scope import is_merged


class Counting(Checkpoint):
    """A checkpoint that counts the entries of task vectors that are read from it."""

    def __init__(self, tensors):
        super().__init__(as_checkpoint(tensors)._entries)
        self.entries = 0

    def count(self, name, number):
        self.entries += number if is_merged(name, self.dtype(name)) else 0

    def __getitem__(self, name):
        tensor = super().__getitem__(name)
        self.count(name, tensor.numel())
        return tensor

    def read_into(self, name, start, out):
        self.count(name, out.numel())
        super().read_into(name, start, out)


def times_read(experts):
    """How often the expert that was read most was read, all tensors that are merged together."""
    expert = max(experts.values(), key=lambda expert: expert.entries)
    stored = sum(math.prod(expert.shape(n)) for n in expert if is_merged(n, expert.dtype(n)))
    return round(expert.entries / stored)
