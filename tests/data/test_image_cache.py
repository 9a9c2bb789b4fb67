"""Decoded images on disk: the same to the bit, found again, bounded, and never in the way."""

import os
from dataclasses import replace

import pytest
import torch
from PIL import Image

from lightning_merge.core.errors import InputError, InputWarning
from lightning_merge.data import MergeDataModule, image_cache
from lightning_merge.data.dataset import TaskInputs
from lightning_merge.data.image_cache import Decoded, ImageCache, image_key

PARTS = ("train", "validation", "test")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def decoded(monkeypatch):
    """Positions that are decoded from now on."""
    positions, original = [], TaskInputs._decode
    monkeypatch.setattr(
        TaskInputs, "_decode", lambda self, p: positions.append(p) or original(self, p)
    )
    return positions


@pytest.fixture
def pixels():
    """All images of a data module by task and part."""

    def pixels(data):
        found = {}
        for task in data.tasks:
            for part in PARTS:
                images = data.inputs(task, part)
                images.prepare()
                found[task, part] = images[list(range(len(images)))].inputs
        return found

    return pixels


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def files(folder):
    return sorted(path for path in folder.iterdir() if path.suffix == ".pixels")


def test_cold_warm_and_without_are_equal_to_the_bit(make, folder, decoded, pixels):
    without = pixels(make())
    assert not folder.exists()
    cold = pixels(make(image_cache=str(folder)))
    count = len(decoded)
    warm = pixels(make(image_cache=str(folder)))
    assert equal(without, cold)
    assert equal(without, warm)
    assert len(decoded) == count == 2 * sum(map(len, without.values()))
    assert len(files(folder)) == len(without)


def test_part_of_the_images_is_kept_and_completed(make, folder, decoded, pixels):
    def images():
        return make(("two",), image_cache=str(folder)).inputs("two", "train")

    first, second = images(), images()  # two processes of one run
    first.prepare([0, 2, 4])
    second.prepare([1, 3, 4])
    whole = images()
    del decoded[:]
    whole.prepare()
    assert sorted(decoded) == list(range(5, len(whole)))
    assert equal(pixels(make(("two",))), pixels(make(("two",), image_cache=str(folder))))


def test_a_cut_file_is_made_anew(make, folder, decoded, pixels):
    want = pixels(make(("one",), image_cache=str(folder)))
    for path in files(folder):
        os.truncate(path, path.stat().st_size - 1)
    del decoded[:]
    assert equal(pixels(make(("one",), image_cache=str(folder))), want)
    assert len(decoded) == sum(map(len, want.values()))
    del decoded[:]
    assert equal(pixels(make(("one",), image_cache=str(folder))), want)
    assert not decoded


def test_what_is_read_cannot_change_the_file(folder):
    cache = ImageCache(folder, 1.0)
    cache.write("pets", torch.zeros(9, dtype=torch.uint8))
    cache.read("pets", 9).fill_(7)
    assert cache.read("pets", 9).sum() == 0


def test_the_key_covers_content_order_preprocessing_and_decoder(preprocess, monkeypatch):
    changed = {"size": 9, "interpolation": "bilinear", "resize": 10, "mode": "squash"}
    others = [replace(preprocess, **{name: value}) for name, value in changed.items()]
    keys = [image_key(["a", "b"], p) for p in (preprocess, *others)]
    keys += [image_key(["b", "a"], preprocess), image_key(["a"], preprocess)]
    assert len(set(keys)) == len(keys)
    image_cache._decoder.cache_clear()
    monkeypatch.setattr(image_cache.features, "version", lambda name: "another")
    assert image_key(["a", "b"], preprocess) not in keys
    image_cache._decoder.cache_clear()


def test_a_changed_image_is_not_taken_from_the_cache(make, root, folder, pixels):
    before = pixels(make(("one",), image_cache=str(folder)))
    Image.new("RGB", (8, 8), (1, 2, 3)).save(root / "one" / "test" / "a" / "0.png")
    after = pixels(make(("one",), image_cache=str(folder)))
    assert not torch.equal(before["one", "test"], after["one", "test"])
    assert torch.equal(before["one", "train"], after["one", "train"])


def test_the_folder_stays_small_and_the_oldest_files_go(folder):
    cache, content = ImageCache(folder, 300 / 2**30), torch.zeros(100, dtype=torch.uint8)
    for age, key in enumerate("abc"):
        cache.write(key, content)
        os.utime(folder / f"{key}.pixels", (age, age))
    mapped = cache.read("b", 100)
    assert cache.read("a", 100) is not None  # now c was unused for longest
    cache.write("d", content)
    assert [path.stem for path in files(folder)] == ["a", "b", "d"]
    cache.write("e", torch.zeros(250, dtype=torch.uint8))
    assert [path.stem for path in files(folder)] == ["e"]
    assert mapped.sum() == 0  # a removed file stays mapped
    with pytest.warns(InputWarning, match=r"data\.image_cache_gib=.* not kept on disk"):
        cache.write("f", torch.zeros(301, dtype=torch.uint8))
    assert [path.stem for path in files(folder)] == ["e"]


def test_leftovers_of_killed_processes_are_removed(folder):
    folder.mkdir()
    (folder / ".pets.0123abcd.tmp.pixels").touch()
    ImageCache(folder, 1.0).write("cars", torch.zeros(4, dtype=torch.uint8))
    assert [path.name for path in folder.iterdir()] == ["cars.pixels"]


def test_a_folder_that_cannot_be_written_warns_once(make, folder, pixels, tmp_path):
    folder.write_text("a file where a folder is needed")
    want = pixels(make(("one",)))
    data = make(("one",), image_cache=str(folder / "inside"))
    with pytest.warns(InputWarning, match=r"not kept in .*inside, see data\.image_cache") as caught:
        assert equal(pixels(data), want)
    assert len(caught) == 1


def test_a_full_disk_warns_and_goes_on(make, folder, pixels, monkeypatch):
    def full(self, size):
        raise InputError("No space left on device")

    monkeypatch.setattr(image_cache.PendingFile, "reserve", full)
    with pytest.warns(InputWarning, match="No space left"):
        assert equal(pixels(make(("one",), image_cache=str(folder))), pixels(make(("one",))))
    assert not list(folder.iterdir())


def test_images_beyond_the_memory_are_not_written(make, folder, pixels):
    data = make(("one",), image_cache=str(folder), cache_gib=0)
    assert equal(pixels(data), pixels(make(("one",))))
    assert not folder.exists()


def test_where_the_images_are_kept(make, tmp_path):
    run = tmp_path / "runs" / "first"
    data = make()
    assert data.kept.disk is None  # without a run
    data.kept.keep_beside(run)
    assert data.kept.place == str(tmp_path / "runs" / ".images")
    data.kept.keep_beside(tmp_path / "elsewhere" / "second")
    assert data.kept.place == str(tmp_path / "runs" / ".images")
    for option in ("none", str(tmp_path / "mine")):
        data = make(image_cache=option)
        data.kept.keep_beside(run)
        assert data.kept.place == option
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"data\.image_cache='.*file' is a file"):
        MergeDataModule(source="drawn", tasks=["drawn_hues"], image_cache=str(tmp_path / "file"))


def test_marks_survive_and_memory_is_released(folder):
    cache = ImageCache(folder, 1.0)
    images = Decoded(3, (3, 2, 2), torch.uint8, cache, "pets")
    images.put(1, torch.full((3, 2, 2), 5, dtype=torch.uint8))
    anonymous = images.inputs.data_ptr()
    images.keep()
    assert images.inputs.data_ptr() != anonymous
    assert images.done.tolist() == [False, True, False]
    assert images.inputs.sum() == 5 * 12
