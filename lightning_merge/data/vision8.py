"""Rows of the task table: the eight tasks of "Editing models with task arithmetic"."""

from lightning_merge.data import class_names
from lightning_merge.data.layouts import HubLayout, TorchvisionLayout, Undivided
from lightning_merge.data.spec import DIGIT, IDX, TRAIN_TEST, TaskSpec, numbered, numbers

ROWS = (
    TaskSpec(
        "sun397",
        title="SUN397",
        classes=397,
        mirror=True,
        templates=("a photo of a {}.", "a photo of the {}."),
        names=class_names.SUN397,
        lead=r"/?(\w)[/_](?=\1)|/\w/",
        torchvision=TorchvisionLayout(
            "SUN397", undivided=Undivided(0.5, ("Training_01.txt",), ("Testing_01.txt",))
        ),
        hub=HubLayout("tanganke/sun397"),
        clip_benchmark="sun397",
        obtain="SUN397 can no longer be fetched through torchvision: ask Princeton's vision group "
        "for SUN397.tar.gz and unpack it to <data.root>/SUN397, or use data.source=huggingface. "
        "For research only.",
    ),
    TaskSpec(
        "cars",
        title="Stanford Cars",
        classes=196,
        mirror=True,
        templates=("a photo of a {}.", "a photo of the {}.", "a photo of my {}, a car."),
        names=class_names.CARS,
        torchvision=TorchvisionLayout("StanfordCars", **TRAIN_TEST),
        hub=HubLayout("tanganke/stanford_cars"),
        aliases=("stanford_cars", "stanford-cars"),
        clip_benchmark="cars",
        obtain="Stanford no longer serves the cars: put cars_train, cars_test, devkit and "
        "cars_test_annos_withlabels.mat of a copy into <data.root>/stanford_cars, or use "
        "data.source=huggingface. For research only.",
    ),
    TaskSpec(
        "resisc45",
        title="RESISC45",
        classes=45,
        mirror=True,
        templates=(
            "satellite imagery of {}.",
            "aerial imagery of {}.",
            "satellite photo of a {}.",
            "aerial photo of a {}.",
            "aerial view of the {}.",
        ),
        names=class_names.RESISC45,
        torchvision=TorchvisionLayout(
            "ImageFolder",
            folder="NWPU-RESISC45",
            undivided=Undivided(
                0.2, ("resisc45-train.txt", "resisc45-val.txt"), ("resisc45-test.txt",)
            ),
        ),
        hub=HubLayout("tanganke/resisc45"),
        aliases=("resisc",),
        clip_benchmark="resisc45",
        obtain="Ask the authors of NWPU-RESISC45 for the archive and unpack it to "
        "<data.root>/NWPU-RESISC45/<class>/, or use data.source=huggingface. For research only.",
    ),
    TaskSpec(
        "eurosat",
        title="EuroSAT",
        classes=10,
        mirror=True,
        templates=(
            "a centered satellite photo of {}.",
            "a centered satellite photo of a {}.",
            "a centered satellite photo of the {}.",
        ),
        words=class_names.EUROSAT_WORDS,
        names=class_names.EUROSAT,
        prompt_names=class_names.EUROSAT_PROMPTS,
        torchvision=TorchvisionLayout(
            "EuroSAT",
            undivided=Undivided(
                0.1, ("eurosat-train.txt", "eurosat-val.txt"), ("eurosat-test.txt",)
            ),
        ),
        hub=HubLayout("tanganke/eurosat"),
        clip_benchmark="eurosat",
        obtain="torchvision.datasets.EuroSAT(root, download=True) fetches it to "
        "<data.root>/eurosat/2750 (MIT license).",
    ),
    TaskSpec(
        "svhn",
        title="SVHN",
        classes=10,
        templates=DIGIT,
        names=numbers(10),
        prompt_names=class_names.DIGITS,
        torchvision=TorchvisionLayout("SVHN", **TRAIN_TEST, classes=numbers(10)),
        hub=HubLayout("ufldl-stanford/svhn", config="cropped_digits"),
        clip_benchmark="svhn",
        obtain="torchvision.datasets.SVHN(root, split, download=True) fetches train_32x32.mat and "
        "test_32x32.mat to <data.root>. For non-commercial use only.",
    ),
    TaskSpec(
        "gtsrb",
        title="GTSRB",
        classes=43,
        templates=(
            "a zoomed in photo of a traffic sign, {}.",
            "a centered photo of a traffic sign, {}.",
            "a close up photo of a traffic sign, {}.",
        ),
        words=numbered(class_names.GTSRB_WORDS),
        names=numbers(43),
        prompt_names=class_names.GTSRB_PROMPTS,
        torchvision=TorchvisionLayout("GTSRB", **TRAIN_TEST, classes=numbers(43, width=2)),
        hub=HubLayout("tanganke/gtsrb"),
        clip_benchmark="gtsrb",
        obtain="torchvision.datasets.GTSRB(root, split, download=True) fetches it to "
        "<data.root>/gtsrb (CC0).",
    ),
    TaskSpec(
        "mnist",
        title="MNIST",
        classes=10,
        templates=DIGIT,
        names=numbers(10),
        prompt_names=class_names.DIGITS,
        torchvision=TorchvisionLayout("MNIST", **IDX),
        hub=HubLayout("ylecun/mnist"),
        clip_benchmark="mnist",
        obtain="torchvision.datasets.MNIST(root, download=True) fetches the four idx files to "
        "<data.root>/MNIST/raw and unpacks them (CC BY-SA 3.0).",
    ),
    TaskSpec(
        "dtd",
        title="DTD",
        classes=47,
        mirror=True,
        templates=(
            "a photo of a {} texture.",
            "a photo of a {} pattern.",
            "a photo of a {} thing.",
            "a photo of the {} texture.",
            "a photo of the {} pattern.",
        ),
        names=class_names.DTD,
        torchvision=TorchvisionLayout(
            "DTD", train=({"split": "train"}, {"split": "val"}), test=({"split": "test"},)
        ),
        hub=HubLayout("tanganke/dtd"),
        clip_benchmark="dtd",
        obtain="torchvision.datasets.DTD(root, download=True) fetches it to <data.root>/dtd. "
        "For research only.",
    ),
)
