"""Rows of the task table beside the first eight; see CONTRIBUTING.md for how to add one."""

from lightning_merge.data import class_names
from lightning_merge.data.imagenet import WORDNET_IDS, OpenClipWords
from lightning_merge.data.layouts import HubLayout, TorchvisionLayout
from lightning_merge.data.spec import IDX, TRAIN_TEST, TaskSpec, numbered, numbers

_CIFAR = ("a photo of a {}.", "a blurry photo of a {}.", "a photo of the small {}.")

ROWS = (
    TaskSpec(
        "flowers102",
        title="Flowers102",
        classes=102,
        mirror=True,
        templates=("a photo of a {}, a kind of flower.",),
        words={"pink-yellow dahlia?": "pink and yellow dahlia"},
        names=class_names.FLOWERS102,
        prompt_names=class_names.FLOWERS102_PROMPTS,
        torchvision=TorchvisionLayout("Flowers102", **TRAIN_TEST, classes=class_names.FLOWERS102),
        hub=HubLayout("dpdl-benchmark/oxford_flowers102"),
        aliases=("flowers", "oxford_flowers102", "oxford-flowers102"),
        clip_benchmark="flowers",
        obtain="torchvision.datasets.Flowers102(root, download=True) fetches it to "
        "<data.root>/flowers-102. Train is the split of 1,020 images that published experts have "
        "seen; the 1,020 validation images are left out. No license is stated.",
    ),
    TaskSpec(
        "pcam",
        title="PCAM",
        classes=2,
        mirror=True,
        templates=("a microscope image of {}.",),
        words=numbered(class_names.PCAM_WORDS),
        names=numbers(2),
        prompt_names=class_names.PCAM_PROMPTS,
        torchvision=TorchvisionLayout("PCAM", **TRAIN_TEST, classes=numbers(2)),
        hub=HubLayout("1aurent/PatchCamelyon", classes=numbers(2)),
        aliases=("patch_camelyon",),
        clip_benchmark="pcam",
        obtain="torchvision.datasets.PCAM(root, split, download=True) fetches its six .h5 files to "
        "<data.root>/pcam; reading them takes the package h5py. Class 1 has tumor tissue in its "
        "centre; the validation images are left out (CC0).",
    ),
    TaskSpec(
        "fer2013",
        title="FER2013",
        classes=7,
        mirror=True,
        templates=("a photo of a {} face.", "a face that looks {}."),
        names=class_names.FER2013,
        torchvision=TorchvisionLayout("FER2013", **TRAIN_TEST, classes=class_names.FER2013),
        hub=HubLayout(
            "clip-benchmark/wds_fer2013",
            image="jpg",
            label="cls",
            classes=tuple(sorted(class_names.FER2013)),
        ),
        aliases=("fer-2013",),
        clip_benchmark="fer2013",
        obtain="Put fer2013.csv or icml_face_data.csv of Kaggle's challenge in representation "
        "learning into <data.root>/fer2013; test.csv has no labels. The public and the private "
        "test images are test. The challenge's terms hold.",
    ),
    TaskSpec(
        "oxford_pets",
        title="Oxford-IIIT Pet",
        classes=37,
        mirror=True,
        templates=("a photo of a {}.", "a photo of my pet, a {}."),
        names=class_names.OXFORD_PETS,
        torchvision=TorchvisionLayout(
            "OxfordIIITPet", train=({"split": "trainval"},), test=({"split": "test"},)
        ),
        hub=HubLayout("timm/oxford-iiit-pet"),
        aliases=("oxford-iiit-pet", "oxford_iiit_pet"),
        clip_benchmark="pets",
        obtain="torchvision.datasets.OxfordIIITPet(root, download=True) fetches it to "
        "<data.root>/oxford-iiit-pet (CC BY-SA 4.0).",
    ),
    TaskSpec(
        "stl10",
        title="STL10",
        classes=10,
        mirror=True,
        templates=("a photo of a {}.", "a photo of the {}."),
        names=class_names.STL10,
        torchvision=TorchvisionLayout("STL10", **TRAIN_TEST, classes=class_names.STL10),
        hub=HubLayout("tanganke/stl10"),
        aliases=("stl-10",),
        clip_benchmark="stl10",
        obtain="torchvision.datasets.STL10(root, download=True) fetches it to "
        "<data.root>/stl10_binary; the unlabelled images have to be there, too. For research.",
    ),
    TaskSpec(
        "cifar100",
        title="CIFAR-100",
        classes=100,
        mirror=True,
        templates=_CIFAR,
        words={"cra": "crab"},  # so spelled on the Hub
        names=class_names.CIFAR100,
        torchvision=TorchvisionLayout("CIFAR100", **IDX),
        hub=HubLayout("tanganke/cifar100"),
        aliases=("cifar-100",),
        clip_benchmark="cifar100",
        obtain="torchvision.datasets.CIFAR100(root, download=True) fetches it to "
        "<data.root>/cifar-100-python. For research.",
    ),
    TaskSpec(
        "cifar10",
        title="CIFAR-10",
        classes=10,
        mirror=True,
        templates=_CIFAR,
        names=class_names.CIFAR10,
        torchvision=TorchvisionLayout("CIFAR10", **IDX),
        hub=HubLayout("uoft-cs/cifar10", image="img"),
        aliases=("cifar-10",),
        clip_benchmark="cifar10",
        obtain="torchvision.datasets.CIFAR10(root, download=True) fetches it to "
        "<data.root>/cifar-10-batches-py. For research.",
    ),
    TaskSpec(
        "food101",
        title="Food-101",
        classes=101,
        mirror=True,
        templates=("a photo of {}, a dish.",),
        names=class_names.FOOD101,
        torchvision=TorchvisionLayout("Food101", **TRAIN_TEST),
        hub=HubLayout("ethz/food101", test="validation"),
        aliases=("food", "food-101"),
        clip_benchmark="food101",
        obtain="torchvision.datasets.Food101(root, download=True) fetches it to "
        "<data.root>/food-101. For research only.",
    ),
    TaskSpec(
        "fashion_mnist",
        title="Fashion-MNIST",
        classes=10,
        mirror=True,
        templates=("a photo of a {}.", "a grey photo of a {} on black ground."),
        words=numbered(class_names.FASHION_MNIST_WORDS),
        names=numbers(10),
        prompt_names=class_names.FASHION_MNIST,
        torchvision=TorchvisionLayout("FashionMNIST", **IDX, classes=numbers(10)),
        hub=HubLayout("zalando-datasets/fashion_mnist"),
        aliases=("fashion-mnist",),
        obtain="torchvision.datasets.FashionMNIST(root, download=True) fetches the four idx files "
        "to <data.root>/FashionMNIST/raw and unpacks them (MIT license).",
    ),
    TaskSpec(
        "emnist_digits",
        title="EMNIST digits",
        classes=10,
        templates=('a photo of the digit character: "{}".',),
        names=numbers(10),
        prompt_names=class_names.DIGITS,
        torchvision=TorchvisionLayout(
            "EMNIST",
            train=({"split": "digits", "train": True},),
            test=({"split": "digits", "train": False},),
        ),
        aliases=("emnist",),
        note="EMNIST's ten digits, as in TALL's 20 tasks and LwPTV's out-of-domain sets; "
        "FusionBench's 20 tasks have its 26 letters, emnist_letters, so their averages differ.",
        obtain="torchvision.datasets.EMNIST(root, 'digits', download=True) fetches it to "
        "<data.root>/EMNIST/raw. Images stay as they are stored, rotated and mirrored, as "
        "published experts saw them. Made by NIST; cite its paper.",
    ),
    TaskSpec(
        "kmnist",
        title="KMNIST",
        classes=10,
        templates=("a photo of the character {}.",),
        words=numbered(class_names.HIRAGANA_WORDS),
        names=numbers(10),
        prompt_names=class_names.HIRAGANA,
        torchvision=TorchvisionLayout("KMNIST", **IDX, classes=numbers(10)),
        hub=HubLayout("tanganke/kmnist"),
        obtain="torchvision.datasets.KMNIST(root, download=True) fetches the four idx files to "
        "<data.root>/KMNIST/raw and unpacks them (CC BY-SA 4.0).",
    ),
    TaskSpec(
        "rendered_sst2",
        title="RenderedSST2",
        classes=2,
        templates=("a {} review of a movie.",),
        names=("negative", "positive"),
        torchvision=TorchvisionLayout("RenderedSST2", **TRAIN_TEST),
        hub=HubLayout("nateraw/rendered-sst2"),
        aliases=("rendered-sst2",),
        clip_benchmark="renderedsst2",
        obtain="torchvision.datasets.RenderedSST2(root, split, download=True) fetches it to "
        "<data.root>/rendered-sst2; the validation images are left out. For research.",
    ),
    TaskSpec(
        "emnist_letters",
        title="EMNIST letters",
        classes=26,
        templates=('a photo of the letter: "{}".',),
        words={letter: letter for letter in class_names.LETTERS},
        names=class_names.LETTERS,
        torchvision=TorchvisionLayout(
            "EMNIST",
            train=({"split": "letters", "train": True},),
            test=({"split": "letters", "train": False},),
            classes=class_names.LETTERS,
            first_label=1,
        ),
        hub=HubLayout("tanganke/emnist_letters"),
        note="EMNIST's 26 letters, as in FusionBench's 20 tasks; TALL's 20 tasks and LwPTV's "
        "out-of-domain sets have its ten digits, emnist_digits, so their averages differ.",
        obtain="torchvision.datasets.EMNIST(root, 'letters', download=True) fetches it to "
        "<data.root>/EMNIST/raw. Images stay as they are stored, rotated and mirrored. Made by "
        "NIST; cite its paper.",
    ),
    TaskSpec(
        "imagenet",
        title="ImageNet-1k",
        classes=1000,
        mirror=True,
        words=OpenClipWords(),
        names=WORDNET_IDS,
        torchvision=TorchvisionLayout(
            "ImageNet",
            train=({"split": "train"},),
            test=({"split": "val"},),
            folder="imagenet",
        ),
        hub=HubLayout("ILSVRC/imagenet-1k", test="validation", classes=WORDNET_IDS),
        aliases=("imagenet1k", "imagenet-1k"),
        clip_benchmark="imagenet1k",
        obtain="Register at image-net.org and unpack the training and validation images to "
        "<data.root>/imagenet/{train,val}/<WordNet id>/, with meta.bin as torchvision writes it "
        "from the devkit. The validation images are test. For non-commercial research only.",
    ),
)
