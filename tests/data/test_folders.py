import pickle
import shutil

import numpy as np
import pytest

from lightning_merge.core.errors import InputError
from lightning_merge.data.decode import looks_whole
from lightning_merge.data.folders import ImageFolders
from lightning_merge.data.source import open_source, source_names
from lightning_merge.data.splits import content_hashes


def test_tasks_and_classes_are_found_in_alphabetical_order(root):
    source = open_source("folders", str(root))
    assert source.tasks() == ["one", "three", "two"]
    train = source.load("two", "train")
    assert train.classes == ("x", "y", "z")
    assert train.labels.tolist() == [0] * 20 + [1] * 20 + [2] * 20
    assert len(source.load("two", "test")) == 15


def test_images_are_read_as_rgb_whatever_they_are(make_task, picture):
    root = make_task("t", train=2)
    folder = root / "t" / "train" / "a"
    picture(1, 8, 8).save(folder / "grey.PGM")
    picture(2, 8, 8, 4).save(folder / "with_alpha.png")
    train = ImageFolders(str(root)).load("t", "train")
    assert {train.item(i).mode for i in range(len(train))} == {"RGB"}
    assert len(set(content_hashes(train, "t"))) == len(train)


def test_examples_reach_worker_processes(root):
    train = pickle.loads(pickle.dumps(ImageFolders(str(root)).load("one", "train")))
    assert np.asarray(train.item(3)).shape == (8, 8, 3)


def test_litter_of_file_browsers_is_ignored(root):
    for name in (".DS_Store", "Thumbs.db"):
        (root / "one" / "train" / "a" / name).write_bytes(b"x")
    (root / "one" / "train" / ".cache").mkdir()
    assert len(ImageFolders(str(root)).load("one", "train")) == 20


def _remove_task(task):
    shutil.rmtree(task)


def _remove_split(task):
    shutil.rmtree(task / "train")


def _empty_class(task):
    (task / "train" / "empty").mkdir()


def _no_classes(task):
    shutil.rmtree(task / "train")
    (task / "train").mkdir()


def _notes(task):
    (task / "train" / "a" / "notes.txt").write_text("hello")


def _nested(task):
    (task / "train" / "a" / "more").mkdir()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_remove_task, r"'one' has no data.*tasks found: three, two.*Put your images"),
        (_remove_split, r"'one' has no data.*<task>/\{train,test\}/<class>/<image>"),
        (_empty_class, r"class folder .*empty is empty; fill or remove it"),
        (_no_classes, r"has no class folders"),
        (_notes, r"notes.txt is not an image"),
        (_nested, r"more is not an image"),
    ],
)
def test_bad_folders_say_what_and_where(root, damage, message):
    damage(root / "one")
    with pytest.raises(InputError, match=message):
        ImageFolders(str(root)).load("one", "train")


def test_a_known_task_without_data_says_how_to_get_it(root):
    with pytest.raises(InputError, match=r"'sun397' has no data.*no longer be fetched"):
        ImageFolders(str(root)).load("sun397", "train")


@pytest.mark.parametrize("root", ["", "nowhere"])
def test_a_missing_root(root):
    source = ImageFolders(root)
    for call in (source.tasks, lambda: source.load("mnist", "train")):
        with pytest.raises(InputError, match=r"data\.root='.*' is not a folder"):
            call()


def test_an_unknown_source():
    assert source_names() == ["drawn", "folders", "huggingface", "pool", "tables", "torchvision"]
    with pytest.raises(InputError, match=r"data\.source='zip' is unknown; choose one of"):
        open_source("zip", "")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".ppm", ".gif"])
def test_broken_files_are_named_while_they_are_hashed(make_task, suffix):
    root = make_task("t", train=2, suffix=suffix)
    broken = root / "t" / "train" / "a" / f"0{suffix}"
    whole = broken.read_bytes()
    for data in (whole[: len(whole) * 2 // 3], b"", b"no image at all"):
        assert not looks_whole(data)
        broken.write_bytes(data)
        with pytest.raises(InputError, match=rf"{broken} is not a readable image"):
            content_hashes(ImageFolders(str(root)).load("t", "train"), "t")
    broken.write_bytes(whole + b"\0\0")  # harmless bytes after the end, as some cameras write
    content_hashes(ImageFolders(str(root)).load("t", "train"), "t")


def test_a_file_that_vanished_is_named(root):
    train = ImageFolders(str(root)).load("one", "train")
    (root / "one" / "train" / "a" / "0.png").unlink()
    for read in (train.content, train.item):
        with pytest.raises(InputError, match=r"0\.png cannot be read"):
            read(0)
