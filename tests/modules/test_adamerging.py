"""AdaMerging against the published implementation, and what it may look at."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_zoo import TASKS
from torch.func import functional_call
from torch.nn import functional

from lightning_merge.core.checkpoints.checkpoint import open_checkpoint
from lightning_merge.core.errors import InputError
from lightning_merge.core.vectors.coefficients import StackedTaskVectors
from lightning_merge.core.vectors.task_vectors import TaskVectors
from lightning_merge.modules import AdaMerging

PREFIX = "model.visual."


def fit(trainer, encoder, zoo, data, *, max_epochs=3, **settings):
    torch.manual_seed(11)
    module = AdaMerging(encoder, zoo, **{"learning_rate": 0.01, **settings})
    trainer(max_epochs=max_epochs).fit(module, datamodule=data)
    return module


def coefficients(module):
    with torch.no_grad():
        return module.coefficients()


@pytest.fixture(scope="module")
def reference(shared):
    """Base, experts, images and heads of the reference zoo, and its tower."""
    from open_clip.transformer import QuickGELU, VisionTransformer

    folder = shared / "fixtures" / "zoo"
    order = (folder / "key_order.txt").read_text().split()
    base = load_file(folder / "pretrained.safetensors")
    experts = {p.stem.rsplit("_", 1)[1]: load_file(p) for p in sorted(folder.glob("expert_*"))}
    tower = VisionTransformer(
        image_size=32, patch_size=8, width=64, layers=4, heads=4, mlp_ratio=4.0, output_dim=32,
        act_layer=QuickGELU,
    )  # fmt: skip
    vectors = TaskVectors({name: base[name] for name in order}, experts)
    return vectors, load_file(folder / "aux.safetensors"), tower.eval(), shared


@pytest.mark.shared
@pytest.mark.parametrize(("level", "file"), [("task", "adamerging_tw"), ("layer", "adamerging_lw")])
def test_three_steps_are_the_published_ones(reference, encoder, zoo, level, file):
    vectors, auxiliary, tower, shared = reference
    expected = load_file(shared / "fixtures" / "expected" / f"{file}.safetensors")
    module = AdaMerging(encoder, zoo, level=level)
    module.learner = module.make_learner(vectors)
    stacked, optimizer = StackedTaskVectors(vectors), module.configure_optimizers()

    def loss_of(weights):
        """The published step: two batches of 16 images per task, their mean entropies summed."""
        state = {n[len(PREFIX) :]: t for n, t in weights.items() if n.startswith(PREFIX)}
        total = 0
        for number, task in enumerate(vectors.tasks):
            for batch in range(2):
                start = (4 * number + 8 * batch) % 48
                features = functional_call(tower, state, (auxiliary["images"][start : start + 16],))
                weight, bias = (auxiliary[f"head.{task}.{what}"] for what in ("weight", "bias"))
                logits = functional.linear(features, weight, bias)
                total = total + module.task_loss(task, logits, None)
        return total

    for step in range(3):
        values = module.coefficients()
        values.retain_grad()
        loss = stacked.loss(values, loss_of)
        optimizer.zero_grad()
        loss.backward()
        gradient = values.grad if level == "layer" else values.grad.sum(1, keepdim=True)
        optimizer.step()
        now = coefficients(module)[:, : gradient.shape[1]]
        for got, name in ((loss, "loss"), (gradient.T, "grad"), (now.T, "lambda")):
            want = expected[f"{name}{step}"]
            torch.testing.assert_close(got.detach(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("level", ["task", "layer"])
@pytest.mark.parametrize("transductive", [False, True])
def test_it_learns_what_makes_answers_certain_without_labels(
    trainer, encoder, zoo, data, level, transductive
):
    found = []
    for shift in (0, 3):
        for task in TASKS:
            for part in ("coefficients", "test"):
                images = data.inputs(task, part) if data.preprocess else None
                if images is not None:
                    images.labels = images.labels.roll(shift)
        found.append(fit(trainer, encoder, zoo, data, level=level, transductive=transductive))
    one, other = map(coefficients, found)
    assert torch.equal(one, other)
    assert one.shape == (2, len(found[0].stacked.names))
    assert (one != 0.3).any()
    assert (one == one[:, :1]).all() == (level == "task")


def test_the_entropy_falls(trainer, encoder, zoo, data):
    losses = []

    class Recorded(AdaMerging):
        def training_step(self, batch, batch_idx):
            losses.append(float(super().training_step(batch, batch_idx).detach()))
            return super().training_step(batch, batch_idx)

    module = Recorded(encoder, zoo, learning_rate=0.03)
    trainer(max_epochs=10).fit(module, datamodule=data)
    assert sum(losses[-3:]) < 0.95 * sum(losses[:3])


def test_coefficients_stay_in_the_unit_interval(trainer, encoder, zoo, data):
    module = fit(trainer, encoder, zoo, data, learning_rate=0.5, max_epochs=5)
    values = coefficients(module)
    assert values.min() >= 0
    assert values.max() <= 1
    assert (values == 0).any() or (values == 1).any()


def test_transductive_learning_sees_test_images_alone_and_says_so(trainer, encoder, zoo, data):
    held_out = coefficients(fit(trainer, encoder, zoo, data))
    module = fit(trainer, encoder, zoo, data, transductive=True)
    assert not torch.equal(held_out, coefficients(module))
    assert module.candidates["adamerging"].transductive
    assert not module.candidates["base"].transductive
    stored = open_checkpoint(module.candidates["adamerging"].weights)
    assert json.loads(stored.metadata["hyperparameters"])["transductive"] is True


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior": 1.2}, r"prior=1.2"),
        ({"learning_rate": -1.0}, r"learning_rate=-1.0"),
        ({"level": "block"}, r"level='block'"),
        ({"batch_norm": "fresh"}, r"batch_norm='fresh'"),
    ],
)
def test_options_out_of_range(encoder, zoo, options, message):
    with pytest.raises(InputError, match=message):
        AdaMerging(encoder, zoo, **options)
