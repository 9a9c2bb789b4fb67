"""StatsMerging on two tiny tasks: what teaches, what changes, what is kept, how it resumes."""

import json
from dataclasses import replace

import pytest
import torch
from tiny_zoo import ENCODER, TASKS

from lightning_merge.core.checkpoints.checkpoint import open_checkpoint, save_checkpoint
from lightning_merge.core.errors import InputError
from lightning_merge.core.vectors.task_vectors import TaskVectors
from lightning_merge.methods import LwPTV
from lightning_merge.models.head_files import load_heads, save_heads
from lightning_merge.models.mini_vit import MiniViT
from lightning_merge.modules import StatsMerging
from lightning_merge.modules.memory import check_memory


def fit(trainer, encoder, zoo, data, *, ckpt_path=None, options=None, **settings):
    torch.manual_seed(11)
    module = StatsMerging(encoder, zoo, **{"hidden": 8, "learning_rate": 0.01, **settings})
    run = trainer(**(options or {}))
    run.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return module


def coefficients(module):
    with torch.no_grad():
        return module.coefficients().cpu()


def expert_logits(files, task, images):
    """Logits of a task's expert by a network of its own."""
    network = MiniViT(**ENCODER).load(files.expert[task])
    with torch.no_grad():
        return load_heads(files.heads)[task](network(network.preprocess.finish(images)))


def test_teachers_are_the_experts_themselves(trainer, encoder, zoo, data, files):
    module = fit(trainer, encoder, zoo, data, options={"max_epochs": 1})
    for task in TASKS:
        part = data.inputs(task, "coefficients")
        expected = expert_logits(files, task, part.__getitems__(list(range(len(part)))).inputs)
        torch.testing.assert_close(module.teacher_logits[task], expected, rtol=1e-4, atol=1e-4)
        assert (expected.argmax(1) != part.labels).any()  # or the next test would prove nothing


@pytest.mark.parametrize(("loss", "same"), [("hard", True), ("soft", True), ("labels", False)])
def test_only_the_labelled_ablation_reads_true_labels(trainer, encoder, zoo, data, loss, same):
    found = []
    for permuted in (False, True):
        if permuted:
            for task in TASKS:
                part = data.inputs(task, "coefficients")
                part.labels = part.labels.roll(3)
        found.append(coefficients(fit(trainer, encoder, zoo, data, loss=loss)))
    assert torch.equal(*found) == same


@pytest.mark.parametrize("loss", ["hard", "soft"])
def test_the_loss_decreases_and_nothing_else_changes(trainer, encoder, zoo, data, files, loss):
    losses = []

    class Recorded(StatsMerging):
        def training_step(self, batch, batch_idx):
            losses.append(super().training_step(batch, batch_idx))
            return losses[-1]

    module = Recorded(encoder, zoo, loss=loss, hidden=8, learning_rate=0.03)
    trainer(max_epochs=15).fit(module, datamodule=data)
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    heads = load_heads(files.heads)
    base = open_checkpoint(files.base)
    for name, tensor in encoder.backbone.state_dict().items():
        assert torch.equal(tensor, base[name]), name
    for task in TASKS:
        for name, tensor in module.heads[task].state_dict().items():
            assert torch.equal(tensor, heads[task].state_dict()[name]), (task, name)
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    assert trained
    assert all(name.startswith("learner.") for name in trained)


@pytest.mark.parametrize("kind", ["mlp2", "transformer2", "free"])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    trainer, encoder, zoo, data, tmp_path, kind
):
    """The checkpoint is written after epoch 2 of 5 by the run that goes on, then taken up."""
    options = {"max_epochs": 5}
    whole = fit(trainer, encoder, zoo, data, options=options, learner=kind, step_size=2)

    def stopped(module):
        if module.current_epoch == 1:
            module.trainer.save_checkpoint(tmp_path / "stopped.ckpt")
            raise KeyboardInterrupt

    class Stopped(StatsMerging):
        def on_train_epoch_end(self):
            super().on_train_epoch_end()
            stopped(self)

    torch.manual_seed(11)
    module = Stopped(encoder, zoo, hidden=8, learning_rate=0.01, learner=kind, step_size=2)
    with pytest.raises(SystemExit):
        trainer(**options).fit(module, datamodule=data)
    assert not torch.equal(coefficients(module), coefficients(whole))
    path = tmp_path / "stopped.ckpt"
    resumed = fit(
        trainer, encoder, zoo, data, ckpt_path=path, options=options, learner=kind, step_size=2
    )
    assert torch.equal(coefficients(resumed), coefficients(whole))
    assert resumed.seconds > module.seconds > 0


def test_a_checkpoint_is_small_and_holds_the_learner_alone(trainer, encoder, zoo, data, tmp_path):
    module = fit(trainer, encoder, zoo, data, options={"max_epochs": 1})
    module.trainer.save_checkpoint(tmp_path / "last.ckpt")
    state = torch.load(tmp_path / "last.ckpt", weights_only=False)["state_dict"]
    assert state
    assert all(name.startswith("learner.") for name in state)
    assert (tmp_path / "last.ckpt").stat().st_size < 20_000
    with pytest.raises(InputError, match="nonsense"):
        module.load_state_dict({**state, "learner.nonsense": torch.zeros(1)})


def test_files_hold_what_was_learned(trainer, encoder, zoo, data, files, tmp_path):
    module = fit(trainer, encoder, zoo, data)
    stored = open_checkpoint(tmp_path / "run" / "coefficients.safetensors")
    values = stored["coefficients"]
    assert torch.equal(values, coefficients(module))
    assert values.std() > 0
    assert json.loads(stored.metadata["tasks"]) == list(TASKS)
    layers = json.loads(stored.metadata["layers"])
    merged = open_checkpoint(tmp_path / "run" / "merged" / "sml.safetensors")
    base = open_checkpoint(files.base)
    experts = [open_checkpoint(files.expert[task]) for task in TASKS]
    for column, name in enumerate(layers):
        update = sum(values[k, column] * (e[name] - base[name]) for k, e in enumerate(experts))
        torch.testing.assert_close(merged[name], base[name] + update, rtol=1e-5, atol=1e-6)
    assert json.loads(merged.metadata["hyperparameters"])["loss"] == "hard"
    assert {"base", "expert/reds", "expert/shapes"} <= set(merged.metadata)
    assert list(module.candidates) == ["base", "individual", "sml"]


def test_pruned_layers_get_no_update(trainer, encoder, zoo, data, files, tmp_path):
    fit(trainer, encoder, zoo, data, transforms=[LwPTV(0.9)], options={"max_epochs": 1})
    merged = open_checkpoint(tmp_path / "run" / "merged" / "sml.safetensors")
    base = open_checkpoint(files.base)
    pruned = [name for name in base if torch.equal(merged[name], base[name])]
    assert len(pruned) / len(base) > 0.7


@pytest.mark.parametrize("normalize", ["none", "softmax"])
def test_mixed_precision_starts_at_the_prior(trainer, encoder, zoo, data, normalize):
    options = {"precision": "bf16-mixed", "max_epochs": 1}
    module = fit(
        trainer, encoder, zoo, data, options=options, normalize=normalize, learning_rate=0.0
    )
    prior = {"none": 0.3, "softmax": 0.5}[normalize]
    assert torch.equal(coefficients(module), torch.full_like(coefficients(module), prior))


def test_bfloat16_experts_can_teach(trainer, encoder, zoo, data, files, tmp_path):
    for task in TASKS:
        expert = {n: t.bfloat16() for n, t in open_checkpoint(files.expert[task]).items()}
        save_checkpoint(expert, tmp_path / f"{task}.safetensors")
    halved = replace(zoo, experts=str(tmp_path / "{task}.safetensors"))
    module = fit(trainer, encoder, halved, data, options={"max_epochs": 1})
    assert coefficients(module).std() > 0


@pytest.mark.parametrize("precision", ["16-true", "bf16-true"])
def test_half_precision_of_weights_is_refused(trainer, encoder, zoo, data, precision):
    with pytest.raises(InputError, match=precision):
        fit(trainer, encoder, zoo, data, options={"precision": precision})


def test_experts_larger_than_memory_are_refused(trainer):
    """A billion entries per expert cost nothing here: their memory is one that is expanded."""
    base = {"w": torch.zeros(1).expand(10**9)}
    experts = {str(k): base for k in range(4000)}
    with pytest.raises(InputError, match=r"4000 experts of 1000000000 entries takes 1.6e\+04 GB"):
        check_memory(TaskVectors(base, experts), trainer())
    check_memory(TaskVectors({"w": torch.zeros(9)}, {"one": {"w": torch.zeros(9)}}), trainer())


def test_one_task_is_refused(trainer, encoder, zoo, root):
    from lightning_merge.data.datamodule import MergeDataModule

    with pytest.raises(InputError, match="two tasks"):
        fit(trainer, encoder, zoo, MergeDataModule(root=str(root), tasks=["reds"]))


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"rank": -1}, "rank=-1"),
        ({"features": []}, "features"),
        ({"step_size": 0}, "step_size=0"),
        ({"learning_rate": -1}, "learning_rate=-1"),
        ({"gamma": -0.1}, "gamma=-0.1"),
        ({"hidden": 0}, "hidden=0"),
        ({"learner": "transformer2", "hidden": 6}, "hidden=6"),
    ],
)
def test_a_bad_option_shows_at_once(encoder, zoo, options, names):
    with pytest.raises(InputError, match=names):
        StatsMerging(encoder, zoo, **options)


def test_a_diverged_run_is_an_error_and_writes_nothing(trainer, encoder, zoo, data, tmp_path):
    with pytest.raises(InputError, match="learning_rate"):
        fit(trainer, encoder, zoo, data, learning_rate=1e30)
    assert not (tmp_path / "run" / "coefficients.safetensors").exists()


def test_heads_must_fit(trainer, encoder, zoo, data, files, tmp_path):
    heads = load_heads(files.heads)
    path = tmp_path / "heads.safetensors"
    save_heads({"reds": heads["reds"]}, path)
    with pytest.raises(InputError, match="no head for 'shapes'"):
        fit(trainer, encoder, replace(zoo, heads=str(path)), data)
    save_heads({"reds": heads["shapes"], "shapes": heads["shapes"]}, path)
    with pytest.raises(InputError, match="head of 'reds'"):
        fit(trainer, encoder, replace(zoo, heads=str(path)), data)
