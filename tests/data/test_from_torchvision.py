"""Tiny files in the true formats of torchvision's data sets."""

import json
import pickle
import struct

import numpy as np
import pytest
import scipy.io
import torch
import torchvision

from lightning_merge.core.errors import InputError
from lightning_merge.data.from_torchvision import TorchvisionData
from lightning_merge.data.splits import content_hashes
from lightning_merge.data.tasks import TASKS, task_spec

COUNTS = {"train": 6, "test": 4}
ARRAYS = ("mnist", "fashion_mnist", "kmnist", "emnist_digits", "emnist_letters", "svhn", "cifar10",
          "cifar100", "stl10", "fer2013", "pcam")  # fmt: skip


def pixels(*shape):
    return np.random.RandomState(sum(shape)).randint(0, 256, shape, dtype=np.uint8)


def write_idx(path, array):
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def make_idx(root, name, parts=("train", "t10k"), first=0):
    raw = root / name / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for part, count in zip(parts, (6, 4), strict=True):
        write_idx(raw / f"{part}-images-idx3-ubyte", pixels(count, 28, 28))
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(count) % 3 + first)


def make_mnist(root, save, monkeypatch):
    make_idx(root, "MNIST")


def make_fashion_mnist(root, save, monkeypatch):
    make_idx(root, "FashionMNIST")


def make_kmnist(root, save, monkeypatch):
    make_idx(root, "KMNIST")


def make_emnist_digits(root, save, monkeypatch):
    make_idx(root, "EMNIST", [f"emnist-digits-{split}" for split in COUNTS])


def make_emnist_letters(root, save, monkeypatch):
    make_idx(root, "EMNIST", [f"emnist-letters-{split}" for split in COUNTS], first=1)


def make_svhn(root, save, monkeypatch):
    known = torchvision.datasets.SVHN.split_list
    unchecked = {split: [*entry[:2], None] for split, entry in known.items()}
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", unchecked)
    for split, count in COUNTS.items():
        labels = np.array([10, 1, 2] * 2)[:count, None]  # SVHN writes 10 for the digit 0
        content = {"X": pixels(32, 32, 3, count), "y": labels}
        scipy.io.savemat(root / f"{split}_32x32.mat", content)


def make_cifar(root, monkeypatch, kind, files, labels, meta):
    folder = root / kind.base_folder
    folder.mkdir()
    for split, name in files.items():
        batch = {"data": pixels(COUNTS[split], 3072), labels: [0, 1, 2, 0, 1, 2][: COUNTS[split]]}
        (folder / name).write_bytes(pickle.dumps(batch))
        monkeypatch.setattr(kind, f"{split}_list", [[name, None]])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": None})
    names = {kind.meta["key"]: ["cat", "dog", "frog"]}
    (folder / meta).write_bytes(pickle.dumps(names))


def make_cifar10(root, save, monkeypatch):
    files, kind = {"train": "data_batch_1", "test": "test_batch"}, torchvision.datasets.CIFAR10
    make_cifar(root, monkeypatch, kind, files, "labels", "batches.meta")


def make_cifar100(root, save, monkeypatch):
    files, kind = {"train": "train", "test": "test"}, torchvision.datasets.CIFAR100
    make_cifar(root, monkeypatch, kind, files, "fine_labels", "meta")


def make_stl10(root, save, monkeypatch):
    folder = root / "stl10_binary"
    folder.mkdir()
    for split, count in COUNTS.items():
        labels = np.arange(count, dtype=np.uint8) % 3 + 1  # 1 is the airplane
        (folder / f"{split}_X.bin").write_bytes(pixels(count, 3, 96, 96).tobytes())
        (folder / f"{split}_y.bin").write_bytes(labels.tobytes())
    (folder / "unlabeled_X.bin").touch()
    kind = torchvision.datasets.STL10
    for part in ("train_list", "test_list"):
        monkeypatch.setattr(kind, part, [[name, None] for name, _ in getattr(kind, part)])


def make_flowers102(root, save, monkeypatch):
    base = root / "flowers-102"
    (base / "jpg").mkdir(parents=True)
    ids = {"trnid": [12, 3, 7, 1, 9, 5], "valid": [11], "tstid": [2, 4, 6, 8]}
    of_image = np.zeros(12, int)
    for numbers in ids.values():
        for place, number in enumerate(numbers):
            save(base / "jpg" / f"image_{number:05d}.jpg")
            of_image[number - 1] = place % 3 + 1  # the label file counts from 1
    scipy.io.savemat(base / "setid.mat", ids)
    scipy.io.savemat(base / "imagelabels.mat", {"labels": of_image})
    kind = torchvision.datasets.Flowers102
    files = {what: (name, None) for what, (name, _) in kind._file_dict.items()}
    monkeypatch.setattr(kind, "_file_dict", files)


def make_oxford_pets(root, save, monkeypatch):
    base = root / "oxford-iiit-pet"
    names = ("Abyssinian", "american_bulldog", "Bombay")
    for split, file in {"train": "trainval", "test": "test"}.items():
        lines = [f"{names[i % 3]}_{split}{i} {i % 3 + 1} 1 1" for i in range(COUNTS[split])]
        for line in lines:
            save(base / "images" / f"{line.split()[0]}.jpg")
        (base / "annotations").mkdir(exist_ok=True)
        (base / "annotations" / f"{file}.txt").write_text("\n".join(lines))


def make_food101(root, save, monkeypatch):
    base = root / "food-101"
    (base / "meta").mkdir(parents=True)
    for split, count in COUNTS.items():
        listed = {}
        for i in range(count):
            name = ("apple_pie", "baklava", "waffles")[i % 3]
            listed.setdefault(name, []).append(f"{name}/{split}{i}")
            save(base / "images" / name / f"{split}{i}.jpg")
        (base / "meta" / f"{split}.json").write_text(json.dumps(listed))


def make_rendered_sst2(root, save, monkeypatch):
    for split, count in COUNTS.items():
        for i in range(count):
            save(root / "rendered-sst2" / split / ("negative", "positive")[i % 2] / f"{i}.png")


def make_fer2013(root, save, monkeypatch):
    (root / "fer2013").mkdir()
    uses = ["Training"] * 6 + ["PublicTest"] * 2 + ["PrivateTest"] * 2
    rows = [
        f"{i % 3},{' '.join(map(str, pixels(48 * 48 + i)[: 48 * 48]))},{use}"
        for i, use in enumerate(uses)
    ]
    (root / "fer2013" / "fer2013.csv").write_text("\n".join(["emotion,pixels,Usage", *rows]))
    kind = torchvision.datasets.FER2013
    files = {what: (name, None) for what, (name, _) in kind._RESOURCES.items()}
    monkeypatch.setattr(kind, "_RESOURCES", files)


def make_pcam(root, save, monkeypatch):
    h5py = pytest.importorskip("h5py")
    (root / "pcam").mkdir()
    for split, count in COUNTS.items():
        start = str(root / "pcam" / f"camelyonpatch_level_2_split_{split}")
        with h5py.File(f"{start}_x.h5", "w") as images, h5py.File(f"{start}_y.h5", "w") as labels:
            images["x"] = pixels(count, 96, 96, 3)
            labels["y"] = (np.arange(count, dtype=np.uint8) % 2).reshape(count, 1, 1, 1)


def make_imagenet(root, save, monkeypatch):
    names = {"n01440764": ("tench", "Tinca tinca"), "n01443537": ("goldfish",), "n15075141": ("x",)}
    for split, count in {"train": 6, "val": 4}.items():
        for i in range(count):
            save(root / "imagenet" / split / [*names][i % 3] / f"{split}_{i}.JPEG")
    torch.save((names, []), root / "imagenet" / "meta.bin")


def make_gtsrb(root, save, monkeypatch):
    base = root / "gtsrb"
    for i in range(6):
        save(base / "GTSRB" / "Training" / f"{i % 3:05d}" / f"{i:05d}.ppm")
    lines = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for i in range(4):
        save(base / "GTSRB" / "Final_Test" / "Images" / f"{i:05d}.ppm")
        lines.append(f"{i:05d}.ppm;8;8;1;1;7;7;{i % 3}")
    (base / "GT-final_test.csv").write_text("\n".join(lines))


def make_dtd(root, save, monkeypatch):
    base = root / "dtd" / "dtd"
    (base / "labels").mkdir(parents=True)
    for split, count in {"train": 3, "val": 3, "test": 4}.items():
        names = [f"{('banded', 'dotted', 'woven')[i % 3]}/{split}_{i}.jpg" for i in range(count)]
        (base / "labels" / f"{split}1.txt").write_text("\n".join(names))
        for name in names:
            save(base / "images" / name)


def make_cars(root, save, monkeypatch):
    base = root / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    names = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Acura TL Sedan 2012"]
    meta = {"class_names": np.array(names, dtype=object)}
    scipy.io.savemat(base / "devkit" / "cars_meta.mat", meta)
    files = {"train": "devkit/cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}
    for split, file in files.items():
        rows = [(1, 1, 7, 7, i % 3 + 1, f"{i:05d}.jpg") for i in range(COUNTS[split])]
        fields = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname"]
        table = np.array(rows, dtype=[(f, object) for f in fields])
        scipy.io.savemat(base / file, {"annotations": table})
        for row in rows:
            save(base / f"cars_{split}" / row[-1])


def make_sun397(root, save, monkeypatch):
    names = ["/a/abbey", "/a/apse/indoor", "/b/bar"]
    for i, name in enumerate(names * 4):
        save(root / "SUN397" / name[1:] / f"sun_{i:03d}.jpg")
    (root / "SUN397" / "ClassName.txt").write_text("\n".join(names))


def make_eurosat(root, save, monkeypatch):
    for i in range(60):
        name = ("AnnualCrop", "Forest", "SeaLake")[i % 3]
        save(root / "eurosat" / "2750" / name / f"{name}_{i}.jpg")


def make_resisc45(root, save, monkeypatch):
    for i in range(30):
        name = ("airplane", "sea_ice", "wetland")[i % 3]
        save(root / "NWPU-RESISC45" / name / f"{name}_{i:03d}.jpg")


MAKERS = {
    name.removeprefix("make_"): maker
    for name, maker in list(globals().items())
    if name.startswith("make_") and name not in ("make_idx", "make_cifar")
}


@pytest.fixture
def save(picture):
    count = iter(range(1000))

    def save(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(next(count)).save(path)

    return save


@pytest.fixture
def make(tmp_path, save, monkeypatch):
    def make(task):
        MAKERS[task](tmp_path, save, monkeypatch)
        return TorchvisionData(str(tmp_path))

    return make


@pytest.mark.parametrize(
    ("task", "sizes", "classes", "first"),
    [
        ("mnist", (6, 4), 10, "0"),
        ("fashion_mnist", (6, 4), 10, "0"),
        ("svhn", (6, 4), 10, "0"),
        ("cifar10", (6, 4), 3, "cat"),
        ("gtsrb", (6, 4), 43, "00"),
        ("dtd", (6, 4), 3, "banded"),
        ("cars", (6, 4), 3, "AM General Hummer SUV 2000"),
        ("sun397", (6, 6), 3, "abbey"),
        ("eurosat", (54, 6), 3, "AnnualCrop"),
        ("resisc45", (24, 6), 3, "airplane"),
        ("flowers102", (6, 4), 102, "pink primrose"),
        ("pcam", (6, 4), 2, "0"),
        ("fer2013", (6, 4), 7, "angry"),
        ("oxford_pets", (6, 4), 3, "Abyssinian"),
        ("stl10", (6, 4), 10, "airplane"),
        ("cifar100", (6, 4), 3, "cat"),
        ("food101", (6, 4), 3, "apple_pie"),
        ("emnist_digits", (6, 4), 10, "0"),
        ("emnist_letters", (6, 4), 26, "A"),
        ("kmnist", (6, 4), 10, "0"),
        ("rendered_sst2", (6, 4), 2, "negative"),
        ("imagenet", (6, 4), 3, "n01440764"),
    ],
)
def test_layouts(make, tmp_path, task, sizes, classes, first):
    source = make(task)
    assert source.tasks() == [task]
    hashes = []
    for split, size in zip(("train", "test"), sizes, strict=True):
        examples = source.load(task, split)
        assert len(examples) == size
        assert len(examples.classes) == classes
        assert examples.classes[0] == first
        shown = min(3, classes)
        counts = examples.labels.bincount(minlength=shown)[:shown]
        assert counts.sum() == size
        assert counts.max() - counts.min() <= 1
        assert examples.item(0).mode == "RGB"
        assert np.asarray(examples.item(size - 1)).ndim == 3
        has_files = task not in ARRAYS
        place = tmp_path / (task_spec(task).torchvision.folder)
        assert {(place / examples.file(i)).is_file() for i in range(size)} == {has_files}
        assert has_files or examples.file(0) == ""
        hashes += content_hashes(examples, task)
        pickle.dumps(examples)
    assert len(set(hashes)) == sum(sizes)


def test_every_row_with_a_layout_is_read():
    assert set(MAKERS) == {name for name, spec in TASKS.items() if spec.torchvision}


@pytest.mark.parametrize(
    ("task", "label", "name"),
    [
        ("flowers102", 2, "canterbury bells"),
        ("fer2013", 4, "sad"),  # the Hub's copy is alphabetical, neutral is its 4
        ("stl10", 1, "bird"),
        ("emnist_letters", 2, "C"),
        ("imagenet", 2, "n15075141"),
    ],
)
def test_labels_mean_the_classes_of_the_files(make, task, label, name):
    examples = make(task).load(task, "train")
    assert examples.classes[label] == name
    assert sorted(examples.labels.tolist()) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("task", ["fer2013", "pcam", "stl10", "emnist_digits"])
def test_images_are_those_that_torchvision_shows(make, tmp_path, task):
    layout, examples = task_spec(task).torchvision, make(task).load(task, "test")
    theirs = getattr(torchvision.datasets, layout.dataset)(str(tmp_path), **layout.test[0])
    for i, (image, label) in enumerate(theirs):
        assert np.array_equal(np.asarray(examples.item(i)), np.asarray(image.convert("RGB")))
        assert examples.labels[i] == label


def test_faces_without_labels_are_refused(make, tmp_path):
    source, folder = make("fer2013"), tmp_path / "fer2013"
    grey = " ".join(["7"] * 48 * 48)
    (folder / "fer2013.csv").unlink()
    (folder / "test.csv").write_text(f"pixels\n{grey}\n")
    with pytest.raises(InputError, match=r"'fer2013' has images without labels.*fer2013\.csv"):
        source.load("fer2013", "test")


def test_pixels_are_those_of_the_file(make, tmp_path):
    image = np.asarray(make("svhn").load("svhn", "train").item(2))
    stored = scipy.io.loadmat(tmp_path / "train_32x32.mat")["X"][..., 2]
    assert np.array_equal(image, stored)


def test_own_splits_do_not_depend_on_the_order_of_the_disk(make, monkeypatch):
    source = make("sun397")
    one = content_hashes(source.load("sun397", "test"), "")
    original = torchvision.datasets.SUN397.__init__

    def reversed_init(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self._image_files.reverse()
        self._labels.reverse()

    monkeypatch.setattr(torchvision.datasets.SUN397, "__init__", reversed_init)
    assert content_hashes(source.load("sun397", "test"), "") == one


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("sun397", "'sun397' has no data.*no longer be fetched"),
        ("cars", "'cars' has no data.*Stanford no longer serves"),
        ("mnist", "'mnist' has no data.*fetches the four idx files"),
        ("my_birds", "use data.source=folders"),
    ],
)
def test_missing_data_says_how_to_get_it(tmp_path, task, message):
    with pytest.raises(InputError, match=message):
        TorchvisionData(str(tmp_path)).load(task, "train")


def test_broken_files_are_errors_of_input(make, tmp_path):
    source = make("mnist")
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="'mnist' has no data"):
        source.load("mnist", "train")
    cars = make("cars")
    (tmp_path / "stanford_cars" / "cars_train" / "00003.jpg").unlink()
    with pytest.raises(InputError, match=r"00003\.jpg cannot be read"):
        content_hashes(cars.load("cars", "train"), "")
