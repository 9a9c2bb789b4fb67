"""Tiny files in the true formats of torchvision's data sets."""

import pickle
import struct

import numpy as np
import pytest
import scipy.io
import torchvision

from lightning_merge.core.errors import InputError
from lightning_merge.data.from_torchvision import TorchvisionData
from lightning_merge.data.splits import content_hashes

COUNTS = {"train": 6, "test": 4}


def pixels(*shape):
    return np.random.RandomState(sum(shape)).randint(0, 256, shape, dtype=np.uint8)


def write_idx(path, array):
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def make_idx(root, name):
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    for part, count in {"train": 6, "t10k": 4}.items():
        write_idx(raw / f"{part}-images-idx3-ubyte", pixels(count, 28, 28))
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(count) % 3)


def make_mnist(root, save, monkeypatch):
    make_idx(root, "MNIST")


def make_fashion_mnist(root, save, monkeypatch):
    make_idx(root, "FashionMNIST")


def make_svhn(root, save, monkeypatch):
    known = torchvision.datasets.SVHN.split_list
    unchecked = {split: [*entry[:2], None] for split, entry in known.items()}
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", unchecked)
    for split, count in COUNTS.items():
        labels = np.array([10, 1, 2] * 2)[:count, None]  # SVHN writes 10 for the digit 0
        content = {"X": pixels(32, 32, 3, count), "y": labels}
        scipy.io.savemat(root / f"{split}_32x32.mat", content)


def make_cifar10(root, save, monkeypatch):
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    for kind, name, count in [("train", "data_batch_1", 6), ("test", "test_batch", 4)]:
        batch = {"data": pixels(count, 3072), "labels": [i % 3 for i in range(count)]}
        (folder / name).write_bytes(pickle.dumps(batch))
        monkeypatch.setattr(torchvision.datasets.CIFAR10, f"{kind}_list", [[name, None]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": None}
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "meta", meta)
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["cat", "dog", "frog"]}))


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
    if name.startswith("make_") and name != "make_idx"
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
        counts = examples.labels.bincount(minlength=3)[:3]
        assert counts.sum() == size
        assert counts.max() - counts.min() <= 1
        assert examples.image(0).mode == "RGB"
        assert np.asarray(examples.image(size - 1)).ndim == 3
        has_files = task not in ("mnist", "fashion_mnist", "svhn", "cifar10")
        place = tmp_path / ("NWPU-RESISC45" if task == "resisc45" else "")
        assert {(place / examples.file(i)).is_file() for i in range(size)} == {has_files}
        assert has_files or examples.file(0) == ""
        hashes += content_hashes(examples, task)
        pickle.dumps(examples)
    assert len(set(hashes)) == sum(sizes)


def test_pixels_are_those_of_the_file(make, tmp_path):
    image = np.asarray(make("svhn").load("svhn", "train").image(2))
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
