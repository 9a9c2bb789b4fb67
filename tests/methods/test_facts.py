"""Facts are measured: what a method needs, how often it reads, whether it is told the task."""

import pytest
import torch
from counting import Counting, times_read
from test_ensemble import TinyViT
from torch import nn

from lightning_merge.core.errors import InputError
from lightning_merge.core.facts import Facts, Needs
from lightning_merge.core.vectors.task_vectors import TaskVectors
from lightning_merge.methods import (
    LearnedCoefficients,
    LiNeS,
    MergeMethod,
    Method,
    MTies,
    Surgery,
    Ties,
    Transform,
    registered,
)
from lightning_merge.methods.network import NetworkMethod

SHORT = {"Surgery": {"steps": 3}, "WEMoE": {"steps": 3}}
METHODS = registered(Method)
NETWORKS = registered(NetworkMethod)
TRANSFORMS = registered(Transform)


@pytest.fixture
def net(net, request):
    """The tiny network, or one with MLPs to route."""
    torch.manual_seed(0)
    return TinyViT() if request.getfixturevalue("name") == "WEMoE" else net


@pytest.fixture
def method(name, learned_file):
    file = {"file": learned_file} if name == "LearnedCoefficients" else {}
    return METHODS[name](**SHORT.get(name, {}), **file)


def only(needs, resources):
    """Of all resources those that are needed."""
    mixed = torch.cat([*resources["batches"].values()])
    images = resources["batches"] if Needs.INPUTS_OF_EVERY_TASK in needs else mixed
    given = {"model": Needs.NETWORK, "batches": Needs.INPUTS, "heads": Needs.HEADS}
    return {k: v for k, v in {**resources, "batches": images}.items() if given[k] in needs}


@pytest.mark.parametrize("name", METHODS)
def test_it_takes_what_it_needs_and_no_less(name, method, base, make_experts, resources):
    experts, needs = make_experts(3), method.requirements().needs
    method(base, experts, **only(needs, resources))
    less = {
        Needs.HEADS: {"heads": None},
        Needs.INPUTS_OF_EVERY_TASK: {"batches": torch.cat([*resources["batches"].values()])},
        Needs.INPUTS: {"batches": None},
        Needs.NETWORK: {"model": None},
    }
    for need, lacking in less.items():
        if need in needs:
            with pytest.raises(InputError, match=next(iter(lacking))):
                method(base, experts, **{**only(needs, resources), **lacking})


@pytest.mark.parametrize("number", [2, 5])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_read_as_often_as_is_said(name, method, number, base, make_experts, resources):
    experts = {task: Counting(expert) for task, expert in make_experts(number).items()}
    method(base, experts, **resources)
    assert times_read(experts) == method.requirements().readings


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_read_as_often_as_is_said(name, base, make_experts):
    experts = {task: Counting(expert) for task, expert in make_experts(3).items()}
    vectors = TaskVectors(base, experts)
    for expert in experts.values():
        expert.entries = 0
    TRANSFORMS[name]()(vectors)
    assert TRANSFORMS[name].facts.on_top
    assert times_read(experts) == TRANSFORMS[name].facts.readings


@pytest.mark.parametrize(
    "make",
    [
        lambda file: LiNeS(method=Ties()),
        lambda file: LiNeS(method=Ties(), alpha=0.5),
        lambda file: LiNeS(method=MTies(), alpha=0.5),
        lambda file: LiNeS(method=LiNeS(method=MTies())),
        lambda file: Surgery(method=Ties(), steps=1),
        lambda file: Surgery(method=LiNeS(), steps=1),
        lambda file: LiNeS(method=LearnedCoefficients(file=file, by="statistics")),
    ],
)
@pytest.mark.parametrize("name", ["LiNeS"])
def test_a_method_within_counts(name, make, base, make_experts, resources, learned_file):
    method = make(learned_file)
    experts = {task: Counting(expert) for task, expert in make_experts(3).items()}
    method(base, experts, **resources)
    facts, inner = method.requirements(), method.method.requirements()
    assert times_read(experts) == facts.readings
    assert inner.work in facts.work
    assert facts.costs().startswith(f"{facts.readings} readings")


@pytest.mark.parametrize("name", NETWORKS)
def test_who_is_told_the_task_answers_by_it(name, method, base, make_experts, resources):
    network = method(base, make_experts(2), **resources)
    images, head = resources["batches"]["task0"], nn.Linear(4, 3)
    first, second = (network.logits(task, images, head) for task in ("task0", "task1"))
    assert torch.equal(first, second) != method.requirements().told_task


@pytest.mark.parametrize("name", NETWORKS)
def test_who_recalibrates_asks_for_statistics(name, method, base, make_experts, resources):
    asked = []

    def recalibrate(weights, task=None):
        asked.append(task)
        return weights

    method(base, make_experts(2), **resources, recalibrate=recalibrate)
    assert bool(asked) == method.requirements().recalibrates


def test_a_method_without_facts_needs_weights_alone():
    assert MergeMethod.facts == Facts()
    assert not MergeMethod.facts.needs
    assert NetworkMethod.facts.needs == Needs.NETWORK


@pytest.mark.parametrize(
    ("needs", "words"),
    [
        (Needs.NOTHING, "nothing but weights"),
        (Needs.NETWORK, "a network"),
        (Needs.INPUTS, "a network and unlabelled inputs"),
        (Needs.HEADS, "a network and heads"),
        (Needs.LABELS, "a network and labelled inputs"),
        (
            Needs.HEADS | Needs.INPUTS_OF_EVERY_TASK,
            "a network, unlabelled inputs of every task and heads",
        ),
        (
            Needs.LABELS | Needs.HEADS | Needs.INPUTS_OF_EVERY_TASK,
            "a network, labelled inputs of every task and heads",
        ),
    ],
)
def test_needs_in_words(needs, words):
    assert needs.words() == words
    assert (Needs.NETWORK in needs) == bool(needs)


def test_facts_in_words():
    facts = Facts(reference="A 2020", arxiv="1", readings=2, work="a pass", memory="U")
    assert facts.words() == (
        "needs nothing but weights; costs 2 readings, a pass, memory of U; A 2020, arXiv:1"
    )
    assert Facts(readings=1, on_top=True).costs() == "1 more reading"
    assert Facts(readings=0, on_top=True).costs() == "nothing"
    assert Facts(reference="A 2020").cited() == "A 2020"
