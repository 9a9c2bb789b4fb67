"""Pruning and trimming in front of learning, against the transforms applied by hand."""

import json

import pytest
import torch
from tiny_zoo import model_of

from lightning_merge.callbacks import PruneTaskVectors, TransformTaskVectors, TrimTaskVectors
from lightning_merge.core.checkpoints.checkpoint import open_checkpoint
from lightning_merge.core.errors import InputError
from lightning_merge.core.vectors.task_vectors import TaskVectors, flatten_tasks
from lightning_merge.methods import Dare, LwPTV, TaskArithmetic, Ties, TrimAndElect
from lightning_merge.modules import AdaMerging, FineTune, StatsMerging

MODULES = {"adamerging": AdaMerging, "sml": StatsMerging}


def fit(trainer, encoder, zoo, data, *callbacks, kind="adamerging", **options):
    torch.manual_seed(5)
    module = MODULES[kind](encoder, zoo, learning_rate=0.02, **options)
    trainer(max_epochs=2, callbacks=list(callbacks)).fit(module, datamodule=data)
    return module


def vectors_of(files):
    base = open_checkpoint(files.base)
    return TaskVectors(base, {task: open_checkpoint(f) for task, f in files.expert.items()})


def values(module):
    return open_checkpoint(module.run_folder / "coefficients.safetensors")["coefficients"]


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize(
    ("callback", "transform"),
    [
        (PruneTaskVectors(LwPTV(0.5)), LwPTV(0.5)),
        (TrimTaskVectors(TrimAndElect(0.4)), TrimAndElect(0.4)),
        (TransformTaskVectors(Dare(0.3)), Dare(0.3)),
    ],
    ids=["prune", "trim", "any"],
)
def test_task_vectors_are_transformed_before_learning(
    trainer, encoder, zoo, data, files, kind, callback, transform
):
    module = fit(trainer, encoder, zoo, data, callback, kind=kind)
    expected = transform(vectors_of(files))
    for name in expected.names:
        assert torch.equal(module.stacked.stacks[name], flatten_tasks(expected[name])), name
    inside = fit(trainer, encoder, zoo, data, kind=kind, transforms=[transform])
    with torch.no_grad():
        assert torch.equal(module.coefficients(), inside.coefficients())


@pytest.mark.parametrize(
    ("level", "prune", "scale"),
    [
        ("layer", PruneTaskVectors(LwPTV(0.5)), 0.5),
        ("task", PruneTaskVectors(LwPTV(0.5)), 1.0),
        ("layer", PruneTaskVectors(LwPTV(0.5), rescale=False), 1.0),
        ("layer", PruneTaskVectors(LwPTV(0.0)), 1.0),
    ],
)
def test_layer_wise_coefficients_are_damped_at_the_end(
    trainer, encoder, zoo, data, files, level, prune, scale
):
    """The saved network is theta_0 + mask * sum_k eta c_kl tau_kl."""
    module = fit(trainer, encoder, zoo, data, prune, level=level)
    with torch.no_grad():
        learned = module.coefficients()
    torch.testing.assert_close(values(module), scale * learned)
    base, pruned = open_checkpoint(files.base), prune.transform(vectors_of(files))
    merged = open_checkpoint(module.candidates["adamerging"].weights)
    for column, name in enumerate(pruned.names):
        update = torch.einsum("k,k...->...", scale * learned[:, column], pruned[name])
        torch.testing.assert_close(merged[name], base[name] + update, rtol=1e-5, atol=1e-6)
    assert float(merged.metadata["final_scale"]) == scale


def test_both_apply_in_their_order(trainer, encoder, zoo, data, files):
    module = fit(trainer, encoder, zoo, data, PruneTaskVectors(), TrimTaskVectors())
    assert module.transforms == (LwPTV(), TrimAndElect())
    expected = TrimAndElect()(LwPTV()(vectors_of(files)))
    name = max(expected.names, key=expected.numel)
    assert torch.equal(module.stacked.stacks[name], flatten_tasks(expected[name]))


def test_what_is_measured_later_is_damped_too(trainer, encoder, zoo, data):
    """Validation by the module itself, which merges anew, agrees with the saved network."""
    prune = PruneTaskVectors(LwPTV(0.3))
    module = fit(trainer, encoder, zoo, data, prune)
    run = trainer(callbacks=[prune])
    (found, *_) = run.validate(module, datamodule=data, verbose=False)
    saved = open_checkpoint(module.candidates["adamerging"].weights)
    for name, tensor in saved.items():
        torch.testing.assert_close(module._merged[name], tensor)
    assert module.transforms == (LwPTV(0.3),)
    assert found


@pytest.mark.parametrize("trim", ["global", "per_tensor"])
def test_trimmed_and_elected_vectors_sum_to_ties(files, trim):
    base = open_checkpoint(files.base)
    experts = {task: open_checkpoint(file) for task, file in files.expert.items()}
    split = TaskArithmetic(scale=0.7, transforms=[TrimAndElect(0.3, trim)])(base, experts)
    whole = Ties(density=0.3, scale=0.7, combine="sum", trim=trim)(base, experts)
    for name, tensor in whole.items():
        torch.testing.assert_close(split[name], tensor, rtol=0, atol=1e-6)


def test_a_module_that_learned_without_it_is_refused(trainer, encoder, zoo, data):
    module = fit(trainer, encoder, zoo, data)
    with pytest.raises(InputError, match="comes after learning"):
        trainer(callbacks=[PruneTaskVectors()]).fit(module, datamodule=data)


def test_a_module_without_coefficients_is_refused(trainer, encoder, data, tmp_path):
    module = FineTune(encoder, output=str(tmp_path / "x.safetensors"))
    with pytest.raises(InputError, match="FineTune learns no coefficients"):
        trainer(callbacks=[PruneTaskVectors()]).fit(module, datamodule=data)


def test_adding_the_callback_starts_learning_anew(config, files, run, caplog):
    """From the command line: the record knows what was learned on."""
    path = config(model=model_of(files, "AdaMerging"), trainer__max_epochs=1)
    assert run("fit", "--config", path).code == 0
    more = ["--trainer.callbacks+", "lightning_merge.callbacks.PruneTaskVectors"]
    refused = run("fit", "--config", path, *more)
    assert refused.code == 2
    assert "model.task_vectors" in refused.err
    done = run("fit", "--config", path, *more, "--overwrite", "true")
    assert done.code == 0
    assert "starting anew" in caplog.text
    folder = path.parent / "run"
    found = json.loads((folder / "run.json").read_text())
    assert "LwPTV(prune_ratio=0.7" in found["model.task_vectors"][0]
    assert run("validate", "--config", folder / "config.yaml").code == 0
