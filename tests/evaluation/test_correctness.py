"""The file of right and wrong answers."""

import pytest
import torch

from lightning_merge.core.errors import InputError
from lightning_merge.evaluation.correctness import FILE, Correctness


def answers(*names, rows=1, images=13, task="cars"):
    generator = torch.Generator().manual_seed(0)
    draw = {name: torch.rand(rows, images, generator=generator) < 0.5 for name in names}
    return Correctness({task: "abc"}, {name: {task: bits} for name, bits in draw.items()})


def test_bits_survive_their_file(tmp_path):
    names = ["a/b", "ü\udcff", "c"]
    kept = answers(*names)
    kept.right["c"]["cars"] = torch.rand(3, 13) < 0.5
    file = kept.write(tmp_path)
    assert [*tmp_path.iterdir()] == [file]
    read = Correctness.read(tmp_path)
    assert read.digests == {"cars": "abc"}
    assert [*read.right] == names
    for name, cells in kept.right.items():
        assert torch.equal(read.right[name]["cars"], cells["cars"])


def test_an_image_takes_a_bit(tmp_path):
    one, other = (
        len(answers(*"abcdef"[:count], images=4000).write(tmp_path / str(count)).read_bytes())
        for count in (4, 5)
    )
    assert 500 <= other - one < 500 + 150  # and its name and place in the header


def test_no_file_and_a_damaged_one(tmp_path):
    assert Correctness.read(tmp_path) is None
    file = answers("a", "b").write(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b"candidates", b"kandidates"))
    with pytest.raises(InputError, match=rf"{FILE} is not a record of correct answers"):
        Correctness.read(tmp_path)
    file.write_bytes(whole[:-9])
    with pytest.raises(InputError, match=FILE):
        Correctness.read(tmp_path)


def test_candidates_of_other_images_are_refused():
    right = {"a": {"cars": torch.ones(1, 3) > 0}, "b": {"cars": torch.ones(1, 4) > 0}}
    with pytest.raises(InputError, match=r"candidate 'b' was measured on \{'cars': 4\} images"):
        Correctness({"cars": "d"}, right)
