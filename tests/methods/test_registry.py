"""The registry finds subclasses, a user's own included."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch

from lightning_merge.core.errors import InputError
from lightning_merge.methods import MergeMethod, Resources, Transform, registered


def test_abstract_classes_are_left_out():
    assert "MergeMethod" not in registered(MergeMethod)
    assert "Transform" not in registered(Transform)
    assert list(registered(MergeMethod)) == sorted(registered(MergeMethod))


def test_own_method_streams_like_the_others(base, make_experts):
    @dataclass(frozen=True)
    class First(MergeMethod):
        """The first expert's update."""

        transforms: Sequence[Transform] = ()

        def plan(self, vectors, resources):
            return lambda name, stacked: stacked[0]

    assert registered(MergeMethod)["First"] is First
    merged = First()(base, make_experts(2))
    torch.testing.assert_close(merged["fc1.weight"], make_experts(2)["task0"]["fc1.weight"])


@pytest.mark.parametrize("batches", [None, [], torch.zeros(0, 6), [torch.zeros(0, 6)], ["image"]])
def test_resources_ask_for_inputs(batches, net):
    with pytest.raises(InputError, match="batches"):
        Resources(net, batches).inputs("Method", ["task0"])


def test_resources_ask_for_the_network():
    with pytest.raises(InputError, match="model=None"):
        Resources().network("Method")


def test_batches_become_one_tensor_of_the_models_type(net):
    batches = (torch.full((2, 6), i, dtype=torch.float64) for i in range(3))
    inputs = Resources(net, batches).inputs("Method", ["task0"])
    assert inputs.shape == (6, 6)
    assert inputs.dtype == torch.float32
