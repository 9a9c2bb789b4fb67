"""What several processes cannot do is refused, by all of them and with one message."""

from pathlib import Path

import pytest
from processes import CPUShards, on
from tiny_zoo import TASKS

from lightning_merge.core.errors import InputError
from lightning_merge.modules import Evaluate, StatsMerging


def end_with(capfd, message):
    """Whether the processes have said one thing, once."""
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, errors
    assert message in errors[0]
    return True


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda file: file.unlink(), "holds other images of reds for this process"),
        (lambda file: file.write_bytes(b"no image"), "process 1 of 2: "),
    ],
)
def test_bad_input_of_one_process_ends_all_with_one_message(
    command, config, own_root, spoil, message, capfd
):
    spoil(next(own_root.glob("reds/test/bright/*")))
    codes = command(2, "fit", "--config", config(), *on(2), at_rank={1: ["--data.root", own_root]})
    assert codes == [2, 2]
    assert end_with(capfd, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model__init_args__zoo__base": "nowhere.safetensors"},
            "nowhere.safetensors does not exist",
        ),
        ({"data__tasks": ["reds"]}, "two tasks"),
        ({"model__init_args__learning_rate": 1e30}, "is not finite"),
        (
            {"trainer__callbacks": [{"class_path": "lightning_merge.callbacks.MTiesMerge"}] * 2},
            "'m_ties' of MTiesMerge is taken",
        ),
    ],
)
def test_bad_input_is_told_once(command, config, changes, message, capfd):
    assert command(2, "fit", "--config", config(**changes), *on(2)) == [2, 2]
    assert end_with(capfd, message)


def test_processes_that_would_each_run_alone_are_refused(command, config, capfd, tmp_path):
    assert command(2, "fit", "--config", config()) == [2, 2]
    assert "give --trainer.strategy ddp --trainer.devices 2" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", [StatsMerging, Evaluate])
def test_a_sharded_network_is_refused_where_a_whole_one_is_needed(
    kind, encoder, zoo, files, trainer
):
    module = (
        StatsMerging(encoder, zoo)
        if kind is StatsMerging
        else Evaluate(encoder, files.heads, files.base)
    )
    with pytest.raises(InputError, match=f"CPUShards: {kind.__name__} needs the whole network"):
        module.check(trainer(devices=2, strategy=CPUShards()), list(TASKS), "fit")


@pytest.mark.parametrize(
    ("strategy", "message"), [("fsdp", "requires a GPU"), ("ddp_spawn", "use ddp")]
)
def test_strategies_that_cannot_work_are_refused(run, config, strategy, message):
    done = run("fit", "--config", config(), "--trainer.strategy", strategy, "--trainer.devices=2")
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith("error: trainer")
    assert message in done.err


def test_machines_without_their_processes_are_refused(run, config):
    done = run("fit", "--config", config(), *on(2), "--trainer.num_nodes=2")
    assert done.code == 2
    assert "trainer.num_nodes=2, but this is one process" in done.err


def test_a_recipe_of_many_devices_is_refused_by_a_stage(
    run, config, own_files, root, expert_config
):
    text = expert_config.read_text().replace("devices: 1", "devices: 8")
    expert_config.write_text(text)
    Path(own_files.expert["shapes"]).unlink()
    changes = {"model__init_args__zoo__expert_recipe": str(expert_config)}
    done = run("fit", "--config", config(own_files, root, **changes))
    assert done.code == 2
    assert "trainer.devices=8" in done.err
    assert own_files.expert["shapes"] in done.err
