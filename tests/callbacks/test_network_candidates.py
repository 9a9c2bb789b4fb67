"""Networks of network methods as candidates: made, measured, kept, taken up again."""

import json

import pytest
import torch
from tiny_zoo import ENCODER, TASKS

from lightning_merge.callbacks import MergeCallback
from lightning_merge.core.checkpoints.checkpoint import file_hash, open_checkpoint, save_checkpoint
from lightning_merge.core.errors import InputError
from lightning_merge.core.networks.batch_norm import recalibrated
from lightning_merge.evaluation.results import Results
from lightning_merge.methods import Fisher, TaskArithmetic, Ties
from lightning_merge.methods.emr import EMR
from lightning_merge.methods.ensemble import Ensemble
from lightning_merge.methods.network import load_network
from lightning_merge.methods.surgery import Surgery
from lightning_merge.methods.wemoe import WEMoE
from lightning_merge.models import MiniResNet, MiniViT
from lightning_merge.models.head_files import load_heads, save_heads
from lightning_merge.modules import Evaluate, StatsMerging
from lightning_merge.modules.compare import compare
from lightning_merge.modules.make_heads import make_heads
from lightning_merge.modules.zoo import Zoo

METHODS = {
    "emr": EMR(),
    "surgery": Surgery(Ties(scale=0.5), rank=2, steps=5),
    "surgery_of_fisher": Surgery(Fisher(), steps=1),
    "ensemble": Ensemble("probabilities"),
    "wemoe": WEMoE(steps=2),
}
SMALL = {"image_size": 8, "channels": (4, 4, 8, 8)}


def fit(trainer, encoder, zoo, data, *callbacks, **options):
    module = StatsMerging(encoder, zoo, hidden=8, **options)
    trainer(max_epochs=1, callbacks=list(callbacks)).fit(module, datamodule=data)
    return module


@pytest.fixture
def by_hand(files, data):
    """Make a network by calling a method."""

    def make(method):
        encoder = MiniViT(**ENCODER)
        base = open_checkpoint(files.base)
        experts = {task: open_checkpoint(file) for task, file in files.expert.items()}
        sampled = data.unlabelled_by_task()
        return method(
            base,
            experts,
            model=encoder.backbone,
            batches={task: encoder.preprocess.finish(part) for task, part in sampled.items()},
            heads=load_heads(files.heads),
            project=encoder.project,
        )

    return make


def counted(network, heads, data, task):
    """Fraction of a task's test images that a network gets right, image by image."""
    images, right = data.inputs(task, "test"), 0
    for i in range(len(images)):
        batch = images[i]
        with torch.no_grad():
            logits = network.logits(task, data.preprocess.finish(batch.inputs), heads[task])
        right += int(logits.argmax()) == int(batch.labels)
    return right / len(images)


@pytest.mark.parametrize("name", METHODS)
def test_a_candidate_is_the_network_and_is_measured_as_such(
    trainer, encoder, zoo, data, files, tmp_path, by_hand, name
):
    module = fit(trainer, encoder, zoo, data, MergeCallback(METHODS[name], name))
    candidate, expected = module.candidates[name], by_hand(METHODS[name])
    stored = open_checkpoint(candidate.weights)
    state = expected.state_dict()
    assert set(stored) == set(state)
    assert all(torch.equal(stored[tensor], state[tensor]) for tensor in state)
    assert stored.metadata["method"] == type(METHODS[name]).__name__
    assert stored.metadata["hyperparameters"] == METHODS[name].described()
    assert stored.metadata["expert/reds"] == f"sha256:{file_hash(files.expert['reds'])}"
    assert ("heads" in stored.metadata) == (name in ("wemoe", "surgery_of_fisher"))
    assert candidate.cost.extra_parameters == expected.extra_parameters > 0
    assert candidate.cost.inference_cost == expected.inference_cost
    assert candidate.cost.seconds > 0
    evaluate = Evaluate(encoder, files.heads, files.base)
    rows = {"base": module.candidates["base"], name: candidate}
    found = compare(trainer(), evaluate, data, rows, tmp_path / "run", seed=0)
    heads = load_heads(files.heads)
    row = found.candidates[name]
    assert row.accuracy == {task: counted(expected, heads, data, task) for task in TASKS}
    assert row.extra_parameters == expected.extra_parameters
    assert row.peak_memory == candidate.cost.peak_memory
    table = (tmp_path / "run" / "results.md").read_text()
    assert "| extra parameters | passes |" in table
    again = Evaluate(MiniViT(**ENCODER), files.heads, str(candidate.weights))
    tested = trainer()
    tested.test(again, datamodule=data, verbose=False)
    assert again.measured["test"].accuracy == row.accuracy


def test_a_grid_of_networks_leaves_the_chosen_one(trainer, encoder, zoo, data, files, tmp_path):
    callback = MergeCallback(METHODS["surgery"], "surgery", {"rank": [1, 3], "steps": [4]})
    module = fit(trainer, encoder, zoo, data, callback)
    options = module.candidates["surgery"].options
    sizes = {what: option.cost.extra_parameters for what, option in options.items()}
    assert sizes == {f"rank={rank} steps=4": 2 * 2 * rank * encoder.dim for rank in (1, 3)}
    evaluate = Evaluate(encoder, files.heads, files.base)
    found = compare(trainer(), evaluate, data, module.candidates, tmp_path / "run", seed=0)
    row = found.candidates["surgery"]
    best = row.note.partition(" of ")[0]
    assert row.extra_parameters == sizes[best]
    kept = load_network(tmp_path / "run" / "merged" / "surgery.safetensors", encoder.backbone)
    assert kept.options["rank"] == int(best[5])
    assert len([*tmp_path.glob("run/merged/surgery*")]) == 1


def test_a_merged_network_after_another_network(trainer, encoder, zoo, data, files, tmp_path):
    """What was loaded before leaves nothing behind."""
    callbacks = [MergeCallback(METHODS["emr"], "emr"), MergeCallback(TaskArithmetic(), "plain")]
    module = fit(trainer, encoder, zoo, data, *callbacks)
    evaluate = Evaluate(encoder, files.heads, files.base)
    rows = {name: module.candidates[name] for name in ("plain", "emr")}
    first = compare(trainer(), evaluate, data, rows, tmp_path / "run", seed=0)
    back = dict(reversed(rows.items()))
    second = compare(trainer(), evaluate, data, back, tmp_path / "run", seed=0)
    for name in rows:
        assert first.candidates[name].accuracy == second.candidates[name].accuracy
    plain = first.candidates["plain"]
    assert (plain.extra_parameters, plain.inference_cost) == (0, 1.0)


@pytest.fixture(scope="module")
def resnets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resnets")
    torch.manual_seed(0)
    base = {n: t.clone() for n, t in MiniResNet(**SMALL).backbone.state_dict().items()}
    save_checkpoint(base, folder / "base.safetensors")
    for task in TASKS:
        expert = {
            n: t + 0.2 * torch.rand(t.shape) if t.is_floating_point() else t
            for n, t in base.items()
        }
        save_checkpoint(expert, folder / f"{task}.safetensors")
    files = (folder / name for name in ("base.safetensors", "{task}.safetensors", "heads"))
    return Zoo(*(str(file) for file in files))


@pytest.fixture
def resnet(resnets, data):
    encoder = MiniResNet(**SMALL)
    data.preprocess = encoder.preprocess
    data.load()
    save_heads(dict(make_heads(resnets, encoder, data, list(TASKS))), resnets.heads)
    return encoder


def statistics(weights):
    return {name: t for name, t in weights.items() if "running_" in name}


def test_statistics_are_measured_where_a_network_needs_them(trainer, resnet, resnets, data):
    callbacks = [
        MergeCallback(EMR(), "emr"),
        MergeCallback(Surgery(TaskArithmetic(0.4), steps=2), "surgery"),
        MergeCallback(TaskArithmetic(0.4), "plain"),
        MergeCallback(Ensemble(), "ensemble"),
    ]
    module = fit(trainer, resnet, resnets, data, *callbacks, batch_norm="both")
    assert "ensemble_not_recalibrated" not in module.candidates
    network = {
        name: load_network(candidate.weights, MiniResNet(**SMALL).backbone)
        for name, candidate in module.candidates.items()
        if candidate.cost.extra_parameters
    }
    for suffix in ("", "_not_recalibrated"):
        merged = open_checkpoint(module.candidates[f"plain{suffix}"].weights)
        inside = network[f"surgery{suffix}"].network.state_dict()
        assert all(torch.equal(inside[name], merged[name]) for name in merged)
    for number, task in enumerate(TASKS):
        expert = open_checkpoint(resnets.expert(task))
        own = statistics(network["emr_not_recalibrated"].weights(task))
        member = network["ensemble"].members[number].state_dict()
        for name, tensor in statistics(expert).items():
            torch.testing.assert_close(own[name], tensor)
            torch.testing.assert_close(member[name], tensor)
        emr = network["emr"]
        images = resnet.preprocess.finish(data.unlabelled_by_task()[task])
        weights = {**emr.network.state_dict(), **emr.weights(task)}
        measured = recalibrated(MiniResNet(**SMALL).backbone, weights, [images])
        for name, tensor in statistics(emr.weights(task)).items():
            torch.testing.assert_close(tensor, measured[name])
            assert not torch.allclose(tensor, own[name])


def test_an_architecture_that_a_method_cannot_take_shows_before_training(
    trainer, resnet, resnets, data, monkeypatch
):
    def begin(*_):
        raise AssertionError("training began")

    monkeypatch.setattr(StatsMerging, "training_step", begin)
    with pytest.raises(InputError, match="WEMoE routes MLPs"):
        fit(trainer, resnet, resnets, data, MergeCallback(WEMoE()))


def callback(name, method):
    return {
        "class_path": "lightning_merge.callbacks.MergeCallback",
        "init_args": {"name": name, "method": method},
    }


def test_short_names_in_yaml_and_a_run_that_goes_on(config, run, tmp_path, caplog):
    inner = {"class_path": "TaskArithmetic", "init_args": {"scale": 0.4}}
    learning = {"method": inner, "rank": 2, "steps": 3}
    callbacks = [
        callback("surgery", {"class_path": "Surgery", "init_args": learning}),
        callback("emr", {"class_path": "EMR"}),
        callback("ties", {"class_path": "Ties"}),
    ]
    tuned = callback("tuned", {"class_path": "Surgery", "init_args": {"steps": 1}})
    tuned["init_args"]["grid"] = {"rank": [1, 2]}  # whole numbers stay so
    callbacks.append(tuned)
    path = config(trainer__max_epochs=1)
    done = run("fit", "--config", path, "--trainer.callbacks", json.dumps(callbacks))
    assert done.code == 0, done.err
    folder = tmp_path / "run"
    stored = open_checkpoint(folder / "merged" / "surgery.safetensors").metadata
    described = Surgery(TaskArithmetic(0.4), rank=2, steps=3, seed=3).described()
    assert stored["hyperparameters"] == described
    first = Results.from_json(folder / "results.json")
    assert first.candidates["surgery"].extra_parameters == 2 * 2 * 2 * ENCODER["width"]
    before = {file.name: file.stat().st_mtime_ns for file in folder.glob("merged/*")}
    (folder / "results.json").unlink()
    caplog.clear()
    done = run("fit", "--config", path, "--trainer.callbacks", json.dumps(callbacks))
    assert done.code == 0, done.err
    assert "surgery.safetensors is merged already" in caplog.text
    after = {file.name: file.stat().st_mtime_ns for file in folder.glob("merged/*")}
    for name in ("surgery", "emr", "ties"):
        assert before[f"{name}.safetensors"] == after[f"{name}.safetensors"]
    second = Results.from_json(folder / "results.json")
    for name in ("surgery", "emr", "ties"):
        assert second.candidates[name] == first.candidates[name]


def test_merge_says_that_it_writes_weights(run, files, tmp_path):
    experts = [word for task in TASKS for word in (f"--experts.{task}", files.expert[task])]
    output = tmp_path / "m.safetensors"
    result = run("merge", "--base", files.base, *experts, "--output", output, "--method", "EMR")
    assert result.code == 2
    assert "'EMR' returns a network" in result.err
    assert "MergeCallback" in result.err
    assert not output.exists()


def test_a_misspelt_hyperparameter_is_named(config, run):
    method = {"class_path": "Surgery", "init_args": {"rnk": 2}}
    path = config()
    result = run(
        "fit", "--config", path, "--trainer.callbacks", json.dumps([callback("s", method)])
    )
    assert result.code == 2
    assert "rnk" in result.err


def test_the_list_tells_networks_from_weights(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    lines = run("list", "--what", "methods").out.splitlines()
    found = {line.split()[0]: line for line in lines if line.startswith("  ")}
    assert all(found[name].endswith("returns a network") for name in ("EMR", "WEMoE", "Surgery"))
    assert not found["Ties"].endswith("returns a network")
