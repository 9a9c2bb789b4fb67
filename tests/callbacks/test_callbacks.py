"""Callbacks against the same methods called by hand."""

import csv

import pytest
import torch
from tiny_zoo import TASKS

from lightning_merge.callbacks import (
    CoefficientMap,
    LwPTVMerge,
    MergeCallback,
    MTiesMerge,
    WritePredictions,
)
from lightning_merge.core.checkpoints.checkpoint import file_hash, open_checkpoint
from lightning_merge.core.errors import InputError
from lightning_merge.methods import Average, Dare, LwPTV, MTies, Surgery, TaskArithmetic, Ties
from lightning_merge.modules import Evaluate, FineTune, StatsMerging
from lightning_merge.modules.compare import compare

CASES = {
    "average": (lambda: MergeCallback(Average()), Average()),
    "arithmetic": (
        lambda: MergeCallback(TaskArithmetic(0.4), name="arithmetic"),
        TaskArithmetic(0.4),
    ),
    "ties": (lambda: MergeCallback(Ties(density=0.3)), Ties(density=0.3)),
    "lwptv": (lambda: LwPTVMerge(), TaskArithmetic(transforms=[LwPTV()])),
    "pruned_ties": (
        lambda: LwPTVMerge(Ties(transforms=[Dare(drop=0.5)]), LwPTV(0.5), "pruned_ties"),
        Ties(transforms=[LwPTV(0.5), Dare(drop=0.5)]),
    ),
    "m_ties": (lambda: MTiesMerge(MTies(keep=0.4)), MTies(keep=0.4)),
}


def fit(trainer, encoder, zoo, data, *callbacks, **options):
    module = StatsMerging(encoder, zoo, hidden=8)
    trainer(max_epochs=1, callbacks=list(callbacks), **options).fit(module, datamodule=data)
    return module


@pytest.fixture
def by_hand(files, encoder, data):
    """Merge by calling a method."""

    def merge(method):
        base = open_checkpoint(files.base)
        experts = {task: open_checkpoint(file) for task, file in files.expert.items()}
        if not method.requirements().needs:
            return method(base, experts)
        images = encoder.preprocess.finish(data.unlabelled())
        return method(base, experts, model=encoder.backbone, batches=images)

    return merge


@pytest.mark.parametrize("name", CASES)
def test_a_callback_merges_as_the_method_does(
    trainer, encoder, zoo, data, files, tmp_path, by_hand, name
):
    make, method = CASES[name]
    module = fit(trainer, encoder, zoo, data, make())
    path = tmp_path / "run" / "merged" / f"{name}.safetensors"
    written, expected = open_checkpoint(path), by_hand(method)
    assert set(written) == set(expected)
    assert all(torch.equal(written[tensor], expected[tensor]) for tensor in expected)
    base = open_checkpoint(files.base)
    assert any(not torch.equal(written[tensor], base[tensor]) for tensor in base)
    assert written.metadata["method"] == type(method).__name__
    assert "transforms" in written.metadata["hyperparameters"]
    assert written.metadata["base"] == f"sha256:{file_hash(files.base)}"
    for task in TASKS:
        assert written.metadata[f"expert/{task}"] == f"sha256:{file_hash(files.expert[task])}"
    candidate = module.candidates[name]
    assert (candidate.weights, candidate.options) == (path, None)
    assert candidate.cost.seconds > 0


def test_a_grid_writes_every_point(trainer, encoder, zoo, data, by_hand):
    grid = {"scale": [0.2, 0.6], "density": [0.5]}
    module = fit(trainer, encoder, zoo, data, MergeCallback(Ties(), "tuned", grid))
    candidate = module.candidates["tuned"]
    assert list(candidate.options) == ["scale=0.2 density=0.5", "scale=0.6 density=0.5"]
    for option, scale in zip(candidate.options.values(), grid["scale"], strict=True):
        written, expected = open_checkpoint(option.weights), by_hand(Ties(density=0.5, scale=scale))
        assert option.cost.seconds > 0
        assert all(torch.equal(written[name], expected[name]) for name in expected)
    assert not candidate.weights.exists()  # the comparison chooses


def test_the_time_is_that_of_the_merge_alone(trainer, encoder, zoo, data, monkeypatch):
    """A clock that only merging moves: 2 s for the first point of the grid, 3 s for the next."""
    now = [0.0]

    class Timed(MergeCallback):
        def merge(self, module, method, given):
            now[0] += 2 + (method.scale > 0.3)
            return super().merge(module, method, given)

        def draw(self, module, path):
            now[0] += 100

    monkeypatch.setattr("lightning_merge.core.cost.time.perf_counter", lambda: now[0])
    callback = Timed(TaskArithmetic(), "tuned", {"scale": [0.2, 0.6]})
    module = fit(trainer, encoder, zoo, data, callback)
    options = module.candidates["tuned"].options
    assert {what: option.cost.seconds for what, option in options.items()} == {
        "scale=0.2": 2,
        "scale=0.6": 3,
    }


@pytest.mark.parametrize(
    ("callback", "expected"),
    [
        (
            lambda: MTiesMerge(MTies(node_order="random", seed=1), "random"),
            MTies(node_order="random", seed=5),
        ),
        (
            lambda: MergeCallback(TaskArithmetic(transforms=[Dare(0.5, seed=1)]), "random"),
            TaskArithmetic(transforms=[Dare(0.5, seed=5)]),
        ),
    ],
)
def test_random_methods_follow_the_seed_of_the_run(
    trainer, encoder, zoo, data, by_hand, monkeypatch, tmp_path, callback, expected
):
    monkeypatch.setenv("PL_GLOBAL_SEED", "4")
    fit(trainer, encoder, zoo, data, callback())
    written = open_checkpoint(tmp_path / "run" / "merged" / "random.safetensors")
    sampled = data.unlabelled(seed=4)
    monkeypatch.setattr(data, "unlabelled", lambda: sampled)
    merged = by_hand(expected)
    assert all(torch.equal(written[name], merged[name]) for name in merged)


@pytest.mark.parametrize(
    ("callback", "figures"),
    [
        (lambda: LwPTVMerge(), ["lwptv.png"]),
        (lambda: MTiesMerge(), ["m_ties.png"]),
        (lambda: CoefficientMap(), ["coefficients.png"]),
        (lambda: MergeCallback(Average()), []),
    ],
)
def test_figures(trainer, encoder, zoo, data, tmp_path, callback, figures):
    fit(trainer, encoder, zoo, data, callback())
    found = sorted(tmp_path.glob("run/figures/*"))
    assert [path.name for path in found] == figures
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in found)


def test_the_map_of_a_grid_is_that_of_the_chosen_point(
    trainer, encoder, zoo, data, files, tmp_path, monkeypatch
):
    """Figures that hold the losses: every point has its own, and the chosen one's stays."""

    def write(losses, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(losses, path)

    monkeypatch.setattr("lightning_merge.callbacks.m_ties.m_loss_map", write)
    scales = [0.1, 3.0]
    module = fit(trainer, encoder, zoo, data, MTiesMerge(grid={"scale": scales}))
    candidate = module.candidates["m_ties"]
    found = [torch.load(option.figure) for option in candidate.options.values()]
    assert any(not torch.equal(found[0][layer], found[1][layer]) for layer in found[0])
    evaluate = Evaluate(encoder, files.heads, files.base)
    results = compare(trainer(), evaluate, data, {"m_ties": candidate}, tmp_path / "run", seed=0)
    best = [f"scale={scale}" for scale in scales].index(
        results.candidates["m_ties"].note.split()[0]
    )
    kept = torch.load(candidate.figure)
    assert all(torch.equal(kept[layer], found[best][layer]) for layer in kept)
    assert [path.name for path in tmp_path.glob("run/figures/*")] == ["m_ties.png"]


def test_merging_leaves_the_networks_alone(trainer, encoder, zoo, data, files):
    before = {name: tensor.clone() for name, tensor in open_checkpoint(files.base).items()}
    module = fit(trainer, encoder, zoo, data, MTiesMerge(), LwPTVMerge())
    state = module.encoder.backbone.state_dict()
    assert all(torch.equal(state[name], before[name]) for name in before)


def test_a_grid_reaches_what_a_method_holds():
    grid = {"rank": [4], "TaskArithmetic.scale": [0.1, 0.3], "LwPTV.prune_ratio": [0.5]}
    method = Surgery(TaskArithmetic(transforms=[LwPTV(), Dare()]))
    first, second = MergeCallback(method, grid=grid).grid_methods().values()
    for found, scale in ((first, 0.1), (second, 0.3)):
        inner = TaskArithmetic(scale=scale, transforms=(LwPTV(prune_ratio=0.5), Dare()))
        assert found == Surgery(inner, rank=4)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"denisty": [0.1]}, "denisty"),
        ({"density": [0.1, 1.5]}, r"density=1.5"),
        ({"LwPTV.prune_ratio": [0.5]}, "LwPTV.prune_ratio"),
    ],
)
def test_a_bad_grid_shows_at_once(grid, message):
    with pytest.raises(InputError, match=message):
        MergeCallback(Ties(), grid=grid)


@pytest.mark.parametrize(
    "callback", [lambda: MergeCallback(Average()), lambda: LwPTVMerge(), lambda: CoefficientMap()]
)
def test_without_experts_it_is_refused_before_training(trainer, encoder, data, tmp_path, callback):
    class Untrained(FineTune):
        def training_step(self, *_):
            raise AssertionError("training began")

    run = trainer(callbacks=[callback()])
    with pytest.raises(InputError, match=r"Untrained (has|learns) no"):
        run.fit(Untrained(encoder, str(tmp_path / "x")), datamodule=data)


@pytest.mark.parametrize("name", ["base", "individual", "sml", "ties"])
def test_a_name_that_is_taken_is_refused(trainer, encoder, zoo, data, name):
    with pytest.raises(InputError, match=f"'{name}'"):
        fit(trainer, encoder, zoo, data, MergeCallback(Ties()), MergeCallback(Average(), name))


def test_predictions_are_written_by_task_and_image(trainer, encoder, data, files, tmp_path, root):
    module = Evaluate(encoder, files.heads, files.base)
    run = trainer(callbacks=[WritePredictions()])
    data.eval_batch_size = 4
    predicted = run.predict(module, datamodule=data)
    with (tmp_path / "run" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    expected = [
        {
            "task": task,
            "index": str(i),
            "file": data.division.part(task, "test")[0].file(i),
            "class": data.classes[task][label],
        }
        for task, batches in zip(TASKS, predicted, strict=True)
        for i, label in enumerate(torch.cat(batches).tolist())
    ]
    assert rows == expected
    files = [root / row["task"] / row["file"] for row in rows]
    assert files == sorted(files, key=lambda file: ([*TASKS].index(file.parts[-4]), file))
    assert len(set(files)) == len(files)
    assert all(file.is_file() for file in files)
    assert len(rows) == len(list(root.glob("*/test/*/*.png")))
