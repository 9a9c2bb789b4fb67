"""A grid over the scale in a run: the update is formed once, and files are those of the method."""

import json

import pytest
import torch

from lightning_merge.core.checkpoints.checkpoint import open_checkpoint
from lightning_merge.methods import Resources, Ties


@pytest.mark.parametrize(
    ("grid", "count"),
    [
        ({"density": [0.2, 0.5], "scale": [0.5, 1.0]}, 2),
        ({"density": [0.2, 0.5]}, 2),
    ],
)
def test_every_other_value_has_an_update_of_its_own(run, config, monkeypatch, grid, count):
    formed, direct = [], Ties.direct

    def counted(method, *given):
        formed.append((method.density, method.scale))
        return direct(method, *given)

    monkeypatch.setattr(Ties, "direct", counted)
    options = {"method": {"class_path": "Ties"}, "grid": grid}
    kind = "lightning_merge.callbacks.MergeCallback"
    callbacks = [{"class_path": kind, "init_args": options}]
    done = run("fit", "--config", config(trainer__callbacks=callbacks, trainer__max_epochs=1))
    assert done.code == 0, done.err
    assert len(formed) == count


def test_a_grid_over_the_scale_forms_the_update_once(run, config, files, tmp_path, monkeypatch):
    formed, direct = [], Ties.direct

    def counted(method, *given):
        formed.append(method)
        return direct(method, *given)

    monkeypatch.setattr(Ties, "direct", counted)
    options = {"method": {"class_path": "Ties"}, "grid": {"scale": [0.25, 0.5, 1.0]}}
    kind = "lightning_merge.callbacks.MergeCallback"
    callbacks = [{"class_path": kind, "init_args": options}]
    done = run("fit", "--config", config(trainer__callbacks=callbacks, trainer__max_epochs=1))
    assert done.code == 0, done.err
    assert len(formed) == 1
    monkeypatch.undo()
    merged = open_checkpoint(tmp_path / "run" / "merged" / "ties.safetensors")
    row = json.loads((tmp_path / "run" / "results.json").read_text())["candidates"]["ties"]
    scale = next(s for s in options["grid"]["scale"] if f"scale={s} of 3 chosen" in row["note"])
    assert f"scale={scale}," in merged.metadata["hyperparameters"]
    experts = {task: dict(open_checkpoint(file)) for task, file in files.expert.items()}
    base = dict(open_checkpoint(files.base))
    want = Ties(scale=scale).merge(base, experts, Resources(scope="changed"))
    assert all(torch.equal(merged[name], tensor) for name, tensor in want.items())
