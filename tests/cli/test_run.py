"""The run folder: what a run leaves, how it resumes, and that nothing chosen saw test images."""

import csv
import json

import pytest
import torch
from tiny_zoo import ENCODER, TASKS, model_of

from lightning_merge.callbacks import MergeCallback, MTiesMerge
from lightning_merge.core.checkpoints.checkpoint import open_checkpoint, save_checkpoint
from lightning_merge.modules import Evaluate

CALLBACKS = [
    {
        "class_path": "lightning_merge.callbacks.MergeCallback",
        "init_args": {
            "name": "tuned",
            "method": {"class_path": "TaskArithmetic"},
            "grid": {"scale": [0.1, 0.5]},
        },
    },
    {"class_path": "lightning_merge.callbacks.MTiesMerge"},
    {"class_path": "lightning_merge.callbacks.LwPTVMerge"},
    {"class_path": "lightning_merge.callbacks.CoefficientMap"},
]


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def learned(folder):
    return open_checkpoint(folder / "coefficients.safetensors")["coefficients"]


def test_the_run_folder(run, config, tmp_path, caplog):
    result = run("fit", "--config", config(trainer__callbacks=CALLBACKS))
    assert result.code == 0, result.err
    names = ["base", "individual", "tuned", "m_ties", "lwptv", "sml"]
    for name in names:
        assert name in result.out
    folder = tmp_path / "run"
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert found == {
        "config.yaml",
        "splits.json",
        "metrics.csv",
        "run.json",
        "run.log",
        "checkpoints/last.ckpt",
        "coefficients.safetensors",
        *(f"merged/{name}.safetensors" for name in names[2:]),
        *(f"figures/{name}.png" for name in ("coefficients", "m_ties", "lwptv")),
        "results.md",
        "report.html",
        "results.json",
        "correct.safetensors",
    }
    results = json.loads((folder / "results.json").read_text())
    assert list(results["candidates"]) == names
    assert results["seed"] == 3
    assert results["command"].startswith("python -m lightning_merge fit --config")
    chosen = open_checkpoint(folder / "merged" / "tuned.safetensors").metadata["hyperparameters"]
    note = results["candidates"]["tuned"]["note"]
    assert note.split()[0] in chosen

    before, log = content(folder), rows(folder / "metrics.csv")
    assert {row["epoch"] for row in log} == {"0", "1", "2"}
    show_it_again(run, config, folder, names)
    measure_it(run, config, folder, results["candidates"]["sml"])
    refuse_another(run, config, folder, before)


def show_it_again(run, config, folder, names):
    """The same command touches nothing, and shows the table again."""
    before = content(folder)
    again = run("fit", "--config", config(trainer__callbacks=CALLBACKS), "--data.cache_gib", "1")
    assert again.code == 0
    assert "nothing has changed" in again.out
    assert all(name in again.out for name in names)
    assert content(folder) == before


def measure_it(run, config, folder, learned):
    """What was learned can be measured and used later, and agrees with the table."""
    shown = run("test", "--config", config())
    assert shown.code == 0
    assert [line.split(":")[0] for line in shown.out.splitlines() if "test/" in line] == [
        *(f"test/{task}" for task in TASKS),
        "test/average",
    ]
    measured = rows(folder / "metrics.csv")[-1]
    for task in TASKS:
        expected = learned["accuracy"][task]
        assert float(measured[f"test/{task}"]) == pytest.approx(expected)
    assert run("predict", "--config", config()).code == 0
    assert len(rows(folder / "predictions.csv")) == sum(learned["samples"].values())


def refuse_another(run, config, folder, before):
    """What learned something else cannot; config.yaml and the record are still fit's."""
    refused = run("test", "--config", config(), "--model.init_args.prior", "0.1")
    assert refused.code == 2
    assert "model.init_args.prior (0.3 before, 0.1 now)" in refused.err
    assert run("test", "--config", config(), "--data.tasks", "[shapes, reds]").code == 2
    for name in ("config.yaml", "run.json", "results.json"):
        assert content(folder)[name] == before[name]


def content(folder):
    """All files of a run folder, by name."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_results_of_another_configuration_are_kept_unless_told_otherwise(
    run, config, tmp_path, caplog, own_files, own_root
):
    folder = tmp_path / "run"
    assert run("fit", "--config", config(own_files, own_root)).code == 0
    before, coefficients = content(folder), learned(folder)
    result = run("fit", "--config", config(own_files, own_root, model__init_args__prior=0.1))
    assert result.code == 2
    for words in (str(folder), "prior (0.3 before, 0.1 now)", "default_root_dir", "--overwrite"):
        assert words in result.err
    assert content(folder) == before

    # More to merge is another configuration too, but what was learned stays.
    path = config(own_files, own_root, trainer__callbacks=CALLBACKS)
    assert run("fit", "--config", path).code == 2
    assert content(folder) == before
    caplog.clear()
    assert run("fit", "--config", path, "--overwrite", "true").code == 0
    assert "going on from" in caplog.text
    assert torch.equal(learned(folder), coefficients)
    assert "m_ties" in json.loads((folder / "results.json").read_text())["candidates"]
    assert run("validate", "--config", folder / "config.yaml").code == 0

    # So are other inputs under the same names.
    assert run("fit", "--config", path).code == 0
    expert = dict(open_checkpoint(own_files.expert["reds"]))
    save_checkpoint({k: t * 1.01 for k, t in expert.items()}, own_files.expert["reds"])
    result = run("fit", "--config", path)
    assert result.code == 2
    assert own_files.expert["reds"] in result.err
    caplog.clear()
    assert run("fit", "--config", path, "--overwrite", "true").code == 0
    assert "starting anew" in caplog.text
    assert {row["epoch"] for row in rows(folder / "metrics.csv")} == {"0", "1", "2"}
    assert not torch.equal(learned(folder), coefficients)


def test_what_was_merged_is_not_merged_again_by_a_run_that_goes_on(
    run, config, tmp_path, monkeypatch
):
    grid = {"class_path": "lightning_merge.callbacks.MTiesMerge", "init_args": {"name": "grid"}}
    grid["init_args"]["grid"] = {"scale": [0.1, 0.5]}
    path, folder = config(trainer__callbacks=[*CALLBACKS, grid]), tmp_path / "run"

    def press(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Evaluate, "test_step", press)
        assert run("fit", "--config", path).code not in (0, 2)
    assert not (folder / "results.json").exists()
    merged = {file.name: file.stat().st_mtime_ns for file in folder.glob("merged/*")}
    assert {"grid@0.safetensors", "grid@1.safetensors", "tuned@0.safetensors"} < set(merged)
    with monkeypatch.context() as patch:
        patch.setattr(MergeCallback, "merge", lambda *_: pytest.fail("merged again"))
        patch.setattr(MTiesMerge, "merge", lambda *_: pytest.fail("merged again"))
        assert run("fit", "--config", path).code == 0
    names = {"tuned", "m_ties", "lwptv", "sml", "grid"}
    assert {file.stem for file in folder.glob("merged/*")} == names
    figures = {file.stem for file in folder.glob("figures/*")}
    assert figures == {"coefficients", "m_ties", "lwptv", "grid"}


def test_a_trial_leaves_the_run_alone(run, config, tmp_path):
    path, folder = config(trainer__callbacks=CALLBACKS), tmp_path / "run"
    assert run("fit", "--config", path).code == 0
    before = content(folder)
    for prior in ("0.1", "0.2"):
        options = ["--trainer.fast_dev_run", "true", "--model.init_args.prior", prior]
        result = run("fit", "--config", path, *options)
        assert result.code == 0, result.err
        assert "not a measurement" in result.out
    after = content(folder)
    assert {name for name in after if not name.startswith("trial/")} == set(before)
    assert all(after[name] == value for name, value in before.items())
    assert json.loads(after["trial/results.json"])["notes"]


def test_what_took_no_step_says_so(run, config, tmp_path):
    assert run("fit", "--config", config(trainer__max_epochs=0)).code == 0
    rows = json.loads((tmp_path / "run" / "results.json").read_text())["candidates"]
    assert "no step of training" in rows["sml"]["note"]


def test_a_short_run_has_metrics(run, config, tmp_path):
    assert run("fit", "--config", config(trainer__log_every_n_steps=1000)).code == 0
    losses = [row["train/loss_epoch"] for row in rows(tmp_path / "run" / "metrics.csv")]
    assert len(losses) == 3
    assert all(map(float, losses))


def test_an_expert_starts_anew_from_another_base(run, config, tmp_path, own_files, root, caplog):
    options = {
        "encoder": {"class_path": "lightning_merge.models.MiniViT", "init_args": ENCODER},
        "output": str(tmp_path / "expert.safetensors"),
        "base": own_files.base,
        "heads": own_files.heads,
        "overwrite": True,
    }
    model = {"class_path": "lightning_merge.modules.FineTune", "init_args": options}
    path = config(model=model, data__fit_on="train", trainer__max_epochs=1)
    for changed, message in ((None, ""), (None, "going on from"), ("base", "starting anew")):
        if changed:
            base = dict(open_checkpoint(own_files.base))
            save_checkpoint({k: 1.01 * t for k, t in base.items()}, own_files.base)
        caplog.clear()
        assert run("fit", "--config", path).code == 0
        assert message in caplog.text


def test_before_fit_there_is_nothing_to_test(run, config):
    result = run("test", "--config", config())
    assert result.code == 2
    assert "run fit" in result.err


def test_what_changes_no_number_is_no_other_configuration(run, config, files):
    path = config(model=model_of(files, "AdaMerging"), trainer__max_epochs=1)
    assert run("fit", "--config", path).code == 0
    for option in (["--model.offload", "true"], ["--data.eval_batch_size", "3"]):
        assert "nothing has changed" in run("fit", "--config", path, *option).out


def test_an_option_of_another_release_that_is_null_changes_nothing(run, config, files, tmp_path):
    path = config(model=model_of(files, "AdaMerging"), trainer__max_epochs=1)
    assert run("fit", "--config", path).code == 0
    file = tmp_path / "run" / "run.json"
    options = json.loads(file.read_text()).items()
    before = {name: value for name, value in options if value is not None} | {"model.old": None}
    file.write_text(json.dumps(before))
    assert "nothing has changed" in run("fit", "--config", path).out
    file.write_text(json.dumps(before | {"model.old": 1}))
    assert "model.old (1 before, None now)" in run("fit", "--config", path).err


def test_other_coefficients_in_the_same_file_are_merged_anew(run, config, files, tmp_path):
    """A run that merges by what another has learned depends on the other's file."""
    other, file = str(tmp_path / "other"), tmp_path / "other" / "coefficients.safetensors"
    settings = {"model": model_of(files, "AdaMerging"), "trainer__max_epochs": 1}
    learn = ["--trainer.default_root_dir", other, "--overwrite", "true"]
    method = {"class_path": "LearnedCoefficients", "init_args": {"file": str(file)}}
    callback = {"class_path": "lightning_merge.callbacks.MergeCallback"}
    callback["init_args"] = {"name": "again", "method": method}
    assert run("fit", "--config", config(**settings), *learn).code == 0
    path = config(**settings, trainer__callbacks=[callback])
    assert run("fit", "--config", path).code == 0
    assert "nothing has changed" in run("fit", "--config", path).out
    more = ["--model.learning_rate", "0.2"]
    assert run("fit", "--config", config(**settings), *learn, *more).code == 0
    path = config(**settings, trainer__callbacks=[callback])
    assert run("fit", "--config", path).code == 2
    assert run("fit", "--config", path, "--overwrite", "true").code == 0
    found = open_checkpoint(tmp_path / "run" / "merged" / "again.safetensors")
    wanted = open_checkpoint(tmp_path / "other" / "merged" / "adamerging.safetensors")
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor)
