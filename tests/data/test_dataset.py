from itertools import chain

import pytest
import torch

from lightning_merge.core.errors import InputError
from lightning_merge.core.ranks import Ranks
from lightning_merge.data.dataset import TaskInputs, Unlabelled
from lightning_merge.data.folders import ImageFolders
from lightning_merge.data.order import SeededOrder, Shares, loader


@pytest.fixture
def images(root, preprocess):
    examples = ImageFolders(str(root)).load("two", "train")
    rows = torch.arange(1, 60, 2)

    def make(cache):
        return TaskInputs(examples, rows, preprocess, cache=cache)

    return make


def test_in_memory_or_not_the_images_are_the_same(images):
    kept, read = images(True), images(False)
    for positions in ([3, 0, 3], [29], list(range(30))):
        for one, other in zip(
            kept.__getitems__(positions), read.__getitems__(positions), strict=True
        ):
            assert torch.equal(one, other)
    batch = kept[4]
    assert batch.inputs.shape == (1, 3, 8, 8)
    assert batch.inputs.dtype == torch.uint8
    assert (batch.labels.item(), batch.index.item()) == (0, 4)
    assert kept.labels.tolist() == kept.examples.labels[kept.rows].tolist()


def test_batches_have_every_image_in_order(images):
    kept = images(True)
    parts = list(kept.batches(8, "looking"))
    assert [len(part.labels) for part in parts] == [8, 8, 8, 6]
    for joined, whole in zip(
        map(torch.cat, zip(*parts, strict=True)), kept[list(range(30))], strict=True
    ):
        assert torch.equal(joined, whole)


def test_only_what_is_asked_for_is_decoded_and_once(images, monkeypatch):
    kept, decoded = images(True), []
    original = TaskInputs._decode
    monkeypatch.setattr(
        TaskInputs, "_decode", lambda self, p: decoded.append(p) or original(self, p)
    )
    kept.__getitems__([5, 2, 5])
    assert sorted(decoded) == [2, 5]
    kept.prepare()
    kept.__getitems__([1, 2])
    assert sorted(decoded) == list(range(30))


def test_the_unlabelled_are_the_same_images_decoded_once(images, monkeypatch):
    kept, decoded = images(True), []
    original = TaskInputs._decode
    monkeypatch.setattr(
        TaskInputs, "_decode", lambda self, p: decoded.append(p) or original(self, p)
    )
    labelled, blind = kept[[5, 2, 29]], Unlabelled(kept)[[5, 2, 29]]
    assert sorted(decoded) == [2, 5, 29]
    assert torch.equal(blind.inputs, labelled.inputs)
    assert torch.equal(blind.index, labelled.index)
    assert blind.labels.tolist() == [-1] * 3
    assert torch.equal(kept.labels, images(True).labels)


def test_a_broken_middle_shows_in_prepare(images):
    kept = images(True)
    path = kept.examples.content.args[0].args[0][1]
    data = path.read_bytes()
    path.write_bytes(data[:40] + data[-4:])
    with pytest.raises(InputError, match=f"{path} is not a readable image"):
        kept.prepare()


def test_orders_are_new_every_round_and_follow_the_epoch():
    order = SeededOrder(torch.arange(20), seed=3, name="one")
    first, second = list(order), list(order)
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    order.set_epoch(1)
    third = list(order)
    assert third not in (first, second)
    again = SeededOrder(torch.arange(20), seed=3, name="one")
    again.set_epoch(1)
    torch.rand(5)
    assert list(again) == third
    others = [SeededOrder(torch.arange(20), *named) for named in ((4, "one"), (3, "two"))]
    assert first not in map(list, others)
    assert sorted(SeededOrder(torch.tensor([7, 3, 12]), 3, "one")) == [3, 7, 12]


@pytest.mark.parametrize("workers", [0, 2])
def test_every_image_once(images, workers):
    batches = list(loader(images(False), 7, num_workers=workers))
    assert [len(batch.labels) for batch in batches] == [7, 7, 7, 7, 2]
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(30))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_empty_batch_is_a_batch(images, workers):
    for cache in (True, False):
        *_, last = loader(images(cache), 20, num_workers=workers, ranks=Ranks(2, 3))
        assert last.inputs.shape == (0, 3, 8, 8)
        assert last.inputs.dtype == torch.uint8
        assert len(last.labels) == len(last.index) == 0


SIZES = [(1, 4, 3), (10, 4, 1), (10, 4, 2), (10, 4, 3), (24, 4, 3), (25, 1, 8), (3, 50, 2)]


@pytest.mark.parametrize(("images", "batch", "processes"), SIZES)
def test_a_shared_pass_has_the_batches_of_a_lone_one(images, batch, processes):
    def shares(rank, of):
        return list(Shares(range(images), batch, Ranks(rank, of), drop_last=False))

    alone = shares(0, 1)
    assert list(chain(*alone)) == list(range(images))
    every = [shares(rank, processes) for rank in range(processes)]
    assert len({len(own) for own in every}) == 1  # all take as many steps
    assert len(every[0]) == -(-len(alone) // processes)
    in_turn = [own for step in zip(*every, strict=True) for own in step]
    assert in_turn == alone + [[]] * (len(in_turn) - len(alone))


@pytest.mark.parametrize(("images", "batch", "processes"), SIZES)
def test_a_shared_step_is_one_of_a_larger_batch(images, batch, processes):
    def steps(size, rank, of):
        order = SeededOrder(torch.arange(images), seed=1, name="task")
        shares = Shares(order, size, Ranks(rank, of), drop_last=True)
        rounds = []
        for epoch in (0, 3):
            shares.set_epoch(epoch)
            rounds += [list(shares), list(shares)]
        assert all(len(found) == len(shares) for found in rounds)
        return list(chain(*rounds))

    union = steps(batch * processes, 0, 1)
    every = [steps(batch, rank, processes) for rank in range(processes)]
    assert [list(chain(*step)) for step in zip(*every, strict=True)] == union
