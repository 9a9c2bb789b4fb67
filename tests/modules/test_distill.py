"""Distill: its loss, what the teacher sees, what the student never sees."""

import json
import math

import pytest
import torch
from forks import as_torchrun, forked
from tiny_zoo import CLASSES, ENCODER, TASKS
from torch import nn

from lightning_merge.core.checkpoints.checkpoint import open_checkpoint, save_checkpoint
from lightning_merge.core.checkpoints.digests import file_hash
from lightning_merge.core.errors import InputError
from lightning_merge.data.augment import Augment
from lightning_merge.data.datamodule import MergeDataModule
from lightning_merge.models import (
    CosineHead,
    Encoder,
    ImagePreprocess,
    MiniResNet,
    MiniViT,
    save_heads,
)
from lightning_merge.modules import Distill, Teacher
from lightning_merge.modules.distill import distillation_loss
from lightning_merge.modules.make_heads import base_features

STUDENT = {"image_size": 8, "channels": [4, 4, 8, 8]}


# The loss


def numbers(*shape, seed=0):
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_loss_is_its_formula(alpha, temperature):
    student, teacher, labels = numbers(6, 3), numbers(6, 3, seed=1), torch.tensor([0, 1, 2] * 2)
    expected = 0.0
    for z, t, y in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):

        def softmax(logits, T):
            powers = [math.exp(value / T) for value in logits]
            return [power / sum(powers) for power in powers]

        hard = -math.log(softmax(z, 1)[y])
        pairs = zip(softmax(t, temperature), softmax(z, temperature), strict=True)
        soft = sum(q * math.log(q / p) for q, p in pairs)
        expected += (alpha * hard + (1 - alpha) * temperature**2 * soft) / len(labels)
    found = distillation_loss(student, teacher, labels, alpha, temperature)
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_a_student_that_answers_as_its_teacher_is_left_alone_by_the_soft_part():
    student = numbers(6, 3).requires_grad_()
    teacher = (student.detach() + 5).requires_grad_()
    loss = distillation_loss(student, teacher, torch.zeros(6, dtype=torch.long), alpha=0.0)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-5)
    assert student.grad.abs().max() < 1e-5
    assert teacher.grad is None


def test_the_gradient_keeps_its_size_at_any_temperature():
    """At a high T it is that of matching centred logits, (z - t) / C (Hinton, equation 4)."""
    student, teacher = numbers(6, 3).requires_grad_(), numbers(6, 3, seed=1)
    distillation_loss(student, teacher, torch.zeros(6, dtype=torch.long), 0.0, 1e3).backward()
    difference = student.detach() - teacher
    expected = (difference - difference.mean(1, keepdim=True)) / 3 / 6
    torch.testing.assert_close(student.grad, expected, rtol=2e-2, atol=2e-3)


# The run


class Shade(Encoder):
    """A teacher with images of its own: 4 x 4, and a mean that no other encoder has."""

    def __init__(self):
        backbone = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 5))
        super().__init__(backbone, ImagePreprocess(4, (0.3, 0.2, 0.1), (0.9, 0.8, 0.7)), 5)
        self.seen = []

    def forward(self, images):
        assert not self.training
        self.seen.append(images)
        return super().forward(images)


@pytest.fixture
def teacher(tmp_path):
    torch.manual_seed(2)
    encoder = Shade()
    state = {name: tensor.clone() for name, tensor in encoder.backbone.state_dict().items()}
    save_checkpoint(state, tmp_path / "teacher.safetensors")
    heads = {task: CosineHead(numbers(len(names), 5), 9.0) for task, names in TASKS.items()}
    save_heads(heads, tmp_path / "teacher_heads.safetensors", classes=CLASSES)
    nn.init.zeros_(encoder.backbone[2].weight)  # its file has to be read
    files = (str(tmp_path / f"{name}.safetensors") for name in ("teacher", "teacher_heads"))
    return Teacher(encoder, *files)


@pytest.fixture
def heads(tmp_path):
    """Frozen heads of a student."""
    found = {task: CosineHead(numbers(len(names), 8), 9.0) for task, names in TASKS.items()}
    return str(save_heads(found, tmp_path / "heads.safetensors", classes=CLASSES))


@pytest.fixture
def distil(trainer, root, teacher, heads, tmp_path):
    """Distil a student of both tasks, or of some; returns the module and the student's file."""

    def run(kind=Distill, tasks=tuple(TASKS), epochs=1, **options):
        torch.manual_seed(5)
        data = MergeDataModule(str(root), tasks=list(tasks), fit_on="train", batch_size=8)
        data.eval_batch_size = 10
        output = tmp_path / "student.safetensors"
        options = {"teacher": teacher, "heads": heads, "overwrite": True, **options}
        module = kind(MiniResNet(**STUDENT), str(output), **options)
        trainer(max_epochs=epochs).fit(module, datamodule=data)
        return module, open_checkpoint(output)

    return run


def test_the_teacher_sees_its_own_preprocessing_without_augmentation(distil, teacher, root):
    module, _ = distil(augment=Augment(invert=1.0, erase=1.0))
    data = MergeDataModule(str(root), tasks=list(TASKS))
    data.preprocess = teacher.encoder.preprocess
    seen = torch.cat(teacher.encoder.seen)
    parts = {task: data.inputs(task, "train") for task in TASKS}
    images = torch.cat([part.__getitems__([*range(len(part))]).inputs for part in parts.values()])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.3, 0.2, 0.1), (0.9, 0.8, 0.7)))
    torch.testing.assert_close(seen, (images / 255 - mean) / std)
    weight = open_checkpoint(teacher.weights)
    features = seen.view(len(seen), 3, 2, 2, 2, 2).mean((3, 5)).flatten(1)
    features = features @ weight["2.weight"].T + weight["2.bias"]
    units = nn.functional.normalize(features, dim=1).split([len(part) for part in parts.values()])
    for (task, names), unit in zip(TASKS.items(), units, strict=True):
        head = nn.functional.normalize(unit, dim=1) @ numbers(len(names), 5).T * 9.0
        torch.testing.assert_close(module.teacher_logits[task], head, rtol=1e-4, atol=1e-4)


def test_the_teacher_is_no_part_of_the_student(distil, teacher):
    module, student = distil()
    names = {*module.state_dict(), *dict(module.named_parameters())}
    assert not any("teacher" in name for name in names)
    assert set(student) == set(module.encoder.backbone.state_dict())
    before = open_checkpoint(teacher.weights)
    assert all(torch.equal(t, before[n]) for n, t in teacher.encoder.backbone.state_dict().items())
    assert not teacher.encoder.training


@pytest.mark.parametrize("labels", ["teacher", "true"])
def test_true_labels_train_only_where_asked(distil, labels):
    class Shuffled(Distill):
        def on_fit_start(self):
            super().on_fit_start()
            for task in TASKS:
                part = self.data.inputs(task, "train")
                part.labels = part.labels.flip(0)

    (_, plain), (_, shuffled) = distil(labels=labels), distil(Shuffled, labels=labels)
    same = all(torch.equal(plain[name], shuffled[name]) for name in plain)
    assert same == (labels == "teacher")


def test_a_step_takes_the_mean_over_the_images_of_all_tasks(distil, monkeypatch):
    """The logged loss of the first step, from the student's and the teacher's logits."""
    losses = []

    class Watched(Distill):
        def training_step(self, batch, batch_idx):
            parts, states = [], {n: t.clone() for n, t in self.encoder.state_dict().items()}
            found = super().training_step(batch, batch_idx)
            assert all(torch.equal(t, states[n]) for n, t in self.encoder.state_dict().items())
            with torch.no_grad():
                for task, part in batch.items():
                    normal = self.preprocess.finish(part.inputs)
                    own = self.heads[task](self.encoder(normal))
                    taught = self.teacher_logits[task][part.index]
                    for z, t in zip(own, taught, strict=True):
                        hard = -z.log_softmax(0)[t.argmax()]
                        p, q = (z / 2).softmax(0), (t / 2).softmax(0)
                        parts.append(0.4 * hard + 0.6 * 4 * (q * (q / p).log()).sum())
            losses.append((found.item(), float(torch.stack(parts).mean())))
            return found

    distil(Watched, alpha=0.4, temperature=2.0)
    assert len(losses) > 2
    for found, expected in losses:
        assert found == pytest.approx(expected, rel=1e-4)


def test_a_student_comes_to_agree_with_its_teacher(trainer, root, files, tmp_path):
    """A ResNet learns to answer as a Vision Transformer does, without a label."""
    torch.manual_seed(5)
    teacher = Teacher(MiniViT(**ENCODER), files.base, files.heads)
    heads = {task: CosineHead(numbers(len(names), 16), 9.0) for task, names in TASKS.items()}
    file = str(save_heads(heads, tmp_path / "heads.safetensors", classes=CLASSES))
    student = MiniResNet(**{**STUDENT, "channels": [8, 8, 16, 16]})
    data = MergeDataModule(str(root), tasks=["reds"], fit_on="train", batch_size=8)
    module = Distill(student, str(tmp_path / "out"), teacher, file, learning_rate=0.01)
    trainer(max_epochs=12).fit(module, datamodule=data)
    features, _ = base_features(student, data, "reds")
    found = module.heads["reds"](features).argmax(1)
    expected = module.teacher_logits["reds"].argmax(1)
    assert len(expected.unique()) == 2
    assert (found == expected).float().mean() > 0.9


def test_the_file_says_what_the_student_was_made_from(distil, teacher, heads):
    _, student = distil(alpha=0.5, temperature=3.0, labels="true")
    options = json.loads(student.metadata["hyperparameters"])
    assert student.metadata["method"] == "Distill"
    assert (options["alpha"], options["temperature"], options["labels"]) == (0.5, 3.0, "true")
    assert options["learning_rate"] == 1e-3
    assert student.metadata["teacher"] == file_hash(teacher.weights)
    assert student.metadata["teacher/heads"] == file_hash(teacher.heads)
    assert student.metadata["heads"] == file_hash(heads)


@pytest.mark.parametrize(
    ("memory", "disk", "kept"),
    [(1.0, 1.0, True), (1e-9, 1.0, False), (1.0, 1e-9, False), (9e-6, 1.0, False)],
)
def test_the_teachers_images_are_kept_on_disk_where_there_is_room(
    trainer, root, teacher, heads, tmp_path, memory, disk, kept
):
    """Those of the student, 48 of 8 px, fit in 9e-6 GiB, and leave no room for others."""
    data = MergeDataModule(
        str(root),
        tasks=["shapes"],
        fit_on="train",
        cache_gib=memory,
        image_cache=str(tmp_path / "cache"),
        image_cache_gib=1.0,
    )
    student = MiniResNet(**STUDENT)
    data.preprocess = student.preprocess
    data.load()
    own = data.inputs("shapes", "train")
    data.kept.disk.gib = disk
    other = data.kept.prepared_for(teacher.encoder.preprocess, own)
    assert (own.cache, other.cache) == (memory > 1e-6, kept)
    assert data.kept.prepared_for(own.preprocess, own) is own


@pytest.mark.filterwarnings("ignore:Grad strides")  # of channels-last convolutions
def test_two_processes_share_the_teacher_and_train_as_one(trainer, root, teacher, heads, tmp_path):
    """48 images in batches of 5: one process has one batch more to show to the teacher."""
    base = {n: t.clone() for n, t in MiniResNet(**STUDENT).backbone.state_dict().items()}

    def distilled(size):
        output = tmp_path / f"{size}.safetensors"

        def work(rank):
            torch.manual_seed(5)
            data = MergeDataModule(
                str(root),
                tasks=["shapes"],
                fit_on="train",
                batch_size=8 // size,
                image_cache=str(tmp_path / f"images{size}"),
            )
            data.eval_batch_size = 5
            student = MiniResNet(**STUDENT).load(base)
            module = Distill(student, str(output), teacher, heads, learning_rate=0.01)
            strategy = "ddp" if size > 1 else "auto"
            trainer(devices=size, strategy=strategy).fit(module, datamodule=data)
            return module.teacher_logits["shapes"]

        return forked(size, as_torchrun(work, size), tmp_path), open_checkpoint(output)

    ([answers], one), (both, two) = distilled(1), distilled(2)
    assert all(torch.equal(answers, own) for own in both)
    stored = [{file.name for file in tmp_path.glob(f"images{size}/*.pixels")} for size in (1, 2)]
    assert len(stored[0]) == len(stored[1]) > 2  # of the student, and of the teacher
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-3, atol=5e-5)
    assert max((one[name] - base[name]).abs().max().item() for name in base) > 2e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.5}, "alpha=1.5"),
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"labels": "none"}, "labels='none'"),
        ({"learning_rate": -1}, "learning_rate=-1"),
    ],
)
def test_options_out_of_range(distil, options, message):
    with pytest.raises(InputError, match=message):
        distil(**options)


def test_files_of_a_teacher_that_do_not_fit(distil, teacher, heads, files):
    for wrong, message in [
        (Teacher(teacher.encoder, files.base, teacher.heads), r"base\.safetensors"),
        (Teacher(teacher.encoder, "nowhere", teacher.heads), "nowhere"),
        (Teacher(teacher.encoder, teacher.weights, heads), r"\(2, 8\), the data.*\(2, 5\)"),
    ]:
        with pytest.raises(InputError, match=message):
            distil(teacher=wrong)
