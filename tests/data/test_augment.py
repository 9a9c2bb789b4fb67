import pytest
import torch

from lightning_merge.core.errors import InputError
from lightning_merge.core.ranks import Ranks
from lightning_merge.core.seeding import generator_for
from lightning_merge.data.augment import Augment, Draws

OFF = dict.fromkeys(("shift", "scale", "rotate", "color", "invert", "erase"), 0.0)
ALL = {"shift": 0.2, "scale": 0.2, "rotate": 20.0, "color": 0.3, "invert": 0.5, "erase": 0.5}


def images(n=6, side=12):
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8)


def test_nothing_changes_when_all_is_off():
    batch = images()
    assert torch.equal(Augment(**OFF)(batch, mirror=False), batch)


@pytest.mark.parametrize("changed", ALL)
def test_every_change_by_itself(changed):
    torch.manual_seed(0)
    batch = images(40)
    before = batch.clone()
    result = Augment(**(OFF | {changed: ALL[changed]}))(batch, mirror=False)
    assert result.dtype == torch.uint8
    assert result.shape == batch.shape
    assert torch.equal(batch, before)
    differs = (result != batch).flatten(1).any(1)
    assert differs.sum() >= 10


def test_probabilities_leave_other_images_alone():
    torch.manual_seed(0)
    batch = images(200)
    inverted = Augment(**(OFF | {"invert": 0.25}))(batch, mirror=False)
    same = (inverted == batch).flatten(1).all(1)
    assert torch.equal(inverted[~same], 255 - batch[~same])
    assert 25 <= (~same).sum() <= 75


def test_mirror_only_where_allowed():
    torch.manual_seed(0)
    batch = images(100)
    result = Augment(**OFF)(batch, mirror=True)
    mirrored = (result == batch.flip(-1)).flatten(1).all(1)
    untouched = (result == batch).flatten(1).all(1)
    assert (mirrored ^ untouched).all()
    assert 25 <= mirrored.sum() <= 75
    assert torch.equal(Augment(**OFF)(batch, mirror=False), batch)


def test_images_are_changed_independently():
    augment, batch = Augment(**ALL), images()
    other = torch.cat([255 - batch[:3], batch[3:]])
    results = []
    for given in (batch, other):
        torch.manual_seed(1)
        results.append(augment(given, mirror=True))
    assert torch.equal(results[0][3:], results[1][3:])
    same = augment(batch[:1].expand(8, -1, -1, -1), mirror=False)
    assert len({image.numpy().tobytes() for image in same}) == 8


def test_draws_follow_from_their_seed_and_are_shared_by_processes():
    augment, batch = Augment(**ALL), images(6)

    def changed(part, *ranks, seed=0):
        torch.rand(3)  # the state of torch's own generator is of no influence
        draws = Draws(generator_for(seed, "step"), Ranks(*ranks))
        return augment(part, mirror=True, draws=draws)

    whole = changed(batch)
    assert torch.equal(changed(batch), whole)
    assert not torch.equal(changed(batch, seed=1), whole)
    parts = [changed(part, rank, 3) for rank, part in enumerate(batch.split(2))]
    assert torch.equal(torch.cat(parts), whole)


def test_a_shift_moves_the_whole_image():
    batch = torch.zeros(50, 3, 20, 20, dtype=torch.uint8)
    batch[:, :, 10, 10] = 255
    moved = Augment(**(OFF | {"shift": 0.1}))(batch, mirror=False).float().mean(1)
    place = (moved.flatten(1) / moved.sum((1, 2))[:, None]) @ torch.arange(400.0)
    assert ((place // 20 - 10).abs() <= 3).all()


@pytest.mark.parametrize(
    "bad", [{"shift": -0.1}, {"erase": 1.5}, {"scale": 1.0}, {"rotate": -1.0}, {"color": 2.0}]
)
def test_values_out_of_range(bad):
    with pytest.raises(InputError, match=rf"augment\.{next(iter(bad))}="):
        Augment(**bad)
