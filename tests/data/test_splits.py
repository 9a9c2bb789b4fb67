import pytest
import torch

from lightning_merge.core.errors import InputError
from lightning_merge.data import splits

LABELS = torch.tensor([0] * 40 + [1] * 10 + [2] * 2 + [3])


@pytest.mark.parametrize(
    ("fraction", "counts"), [(0.2, [8, 2, 1, 0]), (0.01, [1, 1, 1, 0]), (0.99, [39, 9, 1, 1])]
)
def test_a_share_of_every_class_and_never_a_whole_class(fraction, counts):
    rows = splits.stratified_indices(LABELS, fraction, seed=0)
    assert LABELS[rows].bincount(minlength=4).tolist() == counts
    assert rows.tolist() == sorted(set(rows.tolist()))


def test_rows_follow_the_seed():
    rows = [splits.stratified_indices(LABELS, 0.2, seed).tolist() for seed in (0, 0, 1)]
    assert rows[0] == rows[1] != rows[2]


def test_divide_covers_everything_once_and_keeps_copies_together():
    hashes = [str(i // 2) for i in range(len(LABELS))]  # every image twice, side by side
    train, held_out = splits.divide(LABELS, hashes, 0.3, seed=0)
    assert sorted(torch.cat([train, held_out]).tolist()) == list(range(len(LABELS)))
    assert not {hashes[i] for i in train.tolist()} & {hashes[i] for i in held_out.tolist()}


def test_left_out_images_are_on_neither_side():
    hashes = [str(i) for i in range(len(LABELS))]
    whole = splits.divide(LABELS, hashes, 0.3, seed=0)
    gone = {hashes[int(whole[0][0])], hashes[int(whole[1][0])]}
    for rows, before in zip(splits.divide(LABELS, hashes, 0.3, 0, gone), whole, strict=True):
        assert rows.tolist() == before[1:].tolist()


@pytest.mark.parametrize(("fraction", "count"), [(0.01, 1), (0.05, 5), (1.0, 100)])
def test_a_smaller_share_is_part_of_a_larger_one(fraction, count):
    rows = torch.arange(100) * 3
    share = splits.draw_share(rows, fraction, seed=4)
    assert len(share) == count
    assert set(share.tolist()) <= set(splits.draw_share(rows, 0.5 + fraction / 2, 4).tolist())


@pytest.mark.parametrize(
    ("total", "sizes", "counts"),
    [
        (128, [400] * 8, [16] * 8),
        (10, [100, 100, 100], [4, 3, 3]),
        (10, [1, 100, 2], [1, 7, 2]),
        (50, [3, 4], [3, 4]),
        (2, [5, 5, 5], [1, 1, 0]),
    ],
)
def test_draws_are_spread_evenly(total, sizes, counts):
    assert splits.balanced_counts(total, sizes) == counts


def test_digest_sees_images_labels_and_order():
    def digest(hashes, labels):
        return splits.digest(hashes, torch.tensor(labels))

    values = [
        digest(["a", "b"], [0, 1]),
        digest(["b", "a"], [0, 1]),
        digest(["a", "b"], [1, 0]),
        digest(["a", "c"], [0, 1]),
    ]
    assert len(set(values)) == 4
    assert digest(["a", "b"], [0, 1]) == values[0]


def test_an_image_in_two_parts_is_an_error():
    splits.check_disjoint("t", {"train": ["a", "a"], "test": ["b"]})
    with pytest.raises(InputError, match=r"task 't': 2 example\(s\) are in both train and test"):
        splits.check_disjoint("t", {"train": ["a", "b", "c"], "validation": [], "test": ["c", "b"]})
