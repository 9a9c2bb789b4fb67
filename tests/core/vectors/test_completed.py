"""Weights completed from the network that they come from: whole parts, or an error."""

import pytest
import torch

from lightning_merge.core.checkpoints.checkpoint import as_checkpoint
from lightning_merge.core.errors import InputError
from lightning_merge.core.vectors.completed import completed


def state(*names):
    return as_checkpoint({name: torch.full((2,), float(i)) for i, name in enumerate(names)})


WHOLE = state("visual.conv", "visual.block", "visual.norm", "text.block", "text.norm")


def test_a_part_is_taken_as_a_whole():
    found = completed(WHOLE, state("visual.conv", "visual.block", "visual.norm"))
    assert found.kept == ["text.block", "text.norm"]
    assert list(found.weights) == list(WHOLE)


@pytest.mark.parametrize("more", [(), ("text.block", "text.norm")])
def test_a_part_that_lacks_tensors_is_refused(more):
    """Whether or not it is the only one."""
    with pytest.raises(InputError, match=r"they lack visual\.norm"):
        completed(WHOLE, state("visual.conv", "visual.block", *more))
