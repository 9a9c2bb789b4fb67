"""What the list command says of the modules that learn, measured."""

import pytest
from counting import Counting, times_read

from lightning_merge.cli.definitions import kinds_of
from lightning_merge.core.facts import Needs
from lightning_merge.core.subclasses import concrete
from lightning_merge.modules import AdaMerging, CoefficientModule, StatsMerging
from lightning_merge.modules.zoo import Zoo


def test_every_module_that_learns_is_listed():
    listed = kinds_of("lightning_merge.modules", "CoefficientModule")
    found = {name: kind.facts for name, kind in concrete(CoefficientModule).items()}
    assert {name: kind.facts for name, kind in listed.items()} == found


@pytest.mark.parametrize("kind", [AdaMerging, StatsMerging])
def test_experts_are_read_as_often_as_is_said(kind, monkeypatch, trainer, encoder, zoo, data):
    opened = []

    def counting(self, *arguments, **options):
        base, experts = open_zoo(self, *arguments, **options)
        opened.append({task: Counting(expert) for task, expert in experts.items()})
        return base, opened[-1]

    open_zoo = Zoo.open
    monkeypatch.setattr(Zoo, "open", counting)
    trainer(max_epochs=1).fit(kind(encoder, zoo), datamodule=data)
    [experts] = opened
    assert times_read(experts) == kind.facts.readings


def test_true_labels_are_a_need_where_they_are_asked_for(encoder, zoo):
    assert StatsMerging.facts.needs == Needs.INPUTS_OF_EVERY_TASK | Needs.HEADS
    needs = StatsMerging(encoder, zoo, loss="labels").requirements().needs
    assert needs == StatsMerging.facts.needs | Needs.LABELS
    assert Needs.LABELS not in StatsMerging(encoder, zoo).requirements().needs
