"""The registry finds subclasses, a user's own included."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import pytest
import torch

from lightning_merge.core.errors import InputError
from lightning_merge.methods import (
    EMR,
    Dare,
    LiNeS,
    LwPTV,
    MergeMethod,
    Resources,
    TaskArithmetic,
    Ties,
    Transform,
    registered,
)
from lightning_merge.methods.base import brief


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


@pytest.mark.parametrize("transforms", [LwPTV(), [LwPTV], ["LwPTV"], None])
@pytest.mark.parametrize("kind", [Ties, EMR])
def test_transforms_that_are_none(kind, transforms, net, base, make_experts):
    options = {"model": net} if kind is EMR else {}
    with pytest.raises(InputError, match=r"transforms=.*give a list of transforms"):
        kind(transforms=transforms)(base, make_experts(2), **options)


@pytest.mark.parametrize("value", ["0.3", None, True, float("nan")])
def test_hyperparameters_that_are_no_numbers(value):
    for make in (TaskArithmetic, partial(Ties, 0.2)):
        with pytest.raises(InputError, match=r"scale=.*number"):
            make(value)


def test_a_brief_description_has_what_differs_from_the_defaults():
    assert brief(Ties()) == "Ties()"
    inner = Ties(scale=0.25, transforms=[LwPTV(), Dare(drop=0.5)])
    assert brief(LiNeS(inner, beta=0.1)) == (
        "LiNeS(method=Ties(scale=0.25, transforms=[LwPTV(), Dare(drop=0.5)]), beta=0.1)"
    )
    assert brief(LiNeS()) == "LiNeS()"
