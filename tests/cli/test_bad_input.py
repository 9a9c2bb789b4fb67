"""What bad input gets: exit code 2, one message that names the culprit, nothing half-written."""

import math
import os
import shutil
import subprocess
import sys

import pytest
import torch
from tiny_zoo import ENCODER, TASKS, write_config

from lightning_merge.cli.main import main
from lightning_merge.core.checkpoints.checkpoint import open_checkpoint, save_checkpoint
from lightning_merge.models.head_files import save_heads
from lightning_merge.models.heads import CosineHead
from lightning_merge.models.mini_vit import MiniViT


def expect_refusal(result, *words):
    assert result.code == 2, result.err
    assert result.err.count("error:") == 1, result.err
    assert "Traceback" not in result.err
    for word in words:
        assert word in result.err


def spoil(files, task="reds", value=math.nan):
    """Put a NaN into one tensor of an expert; return the tensor's name."""
    expert = {name: tensor.clone() for name, tensor in open_checkpoint(files.expert[task]).items()}
    name = list(expert)[3]
    expert[name].view(-1)[0] = value
    save_checkpoint(expert, files.expert[task])
    return name


def another_architecture(files, task="reds"):
    other = MiniViT(**{**ENCODER, "depth": 2})
    save_checkpoint(other.backbone.state_dict(), files.expert[task])


def write(path, content):
    with open(path, "wb") as file:
        file.write(content)


# Each takes the zoo's files and the data's folder, breaks something, and returns changes of the
# config and words of the message.
FAULTS = {
    "no base": lambda f, d: (os.remove(f.base), {}, ["base", f.base, "zoo.base_recipe"]),
    "no expert": lambda f, d: (
        os.remove(f.expert["shapes"]),
        {},
        ["expert of shapes", f.expert["shapes"], "zoo.expert_recipe"],
    ),
    "no recipe": lambda f, d: (
        os.remove(f.expert["shapes"]),
        {"model__init_args__zoo__expert_recipe": "nowhere.yaml"},
        ["zoo.expert_recipe='nowhere.yaml'"],
    ),
    "garbage": lambda f, d: (write(f.expert["reds"], b"garbage" * 99), {}, [f.expert["reds"]]),
    "empty file": lambda f, d: (write(f.base, b""), {}, [f.base]),
    "garbage heads": lambda f, d: (write(f.heads, b"garbage" * 99), {}, [f.heads]),
    "weights for heads": lambda f, d: (os.replace(f.base, f.heads), {}, [f.base]),
    "architecture": lambda f, d: (another_architecture(f), {}, ["reds"]),
    "nan": lambda f, d: (None, {}, ["reds", spoil(f)]),
    "one expert": lambda f, d: (None, {"data__tasks": ["reds"]}, ["two tasks"]),
    "task without data": lambda f, d: (None, {"data__tasks": ["reds", "greens"]}, ["greens"]),
    "no root": lambda f, d: (None, {"data__root": "nowhere"}, ["data.root='nowhere'"]),
    "no class folder": lambda f, d: (
        (d / "reds" / "train" / "none").mkdir(),
        {},
        [str(d / "reds" / "train" / "none")],
    ),
    "truncated image": lambda f, d: (
        write(d / "reds/test/dark/0.png", (d / "reds/test/dark/1.png").read_bytes()[:60]),
        {},
        [str(d / "reds/test/dark/0.png")],
    ),
    "fit on test": lambda f, d: (None, {"data__fit_on": "test"}, ["fit_on", "test"]),
    "density": lambda f, d: (
        None,
        {
            "trainer__callbacks": [
                {
                    "class_path": "lightning_merge.callbacks.MergeCallback",
                    "init_args": {"method": {"class_path": "Ties", "init_args": {"density": 7}}},
                }
            ]
        },
        ["density=7"],
    ),
    "unknown in grid": lambda f, d: (
        None,
        {
            "trainer__callbacks": [
                {
                    "class_path": "lightning_merge.callbacks.LwPTVMerge",
                    "init_args": {"grid": {"scael": [1.0]}},
                }
            ]
        },
        ["scael"],
    ),
    "precision": lambda f, d: (None, {"trainer__precision": "bf16-true"}, ["bf16-true"]),
    "misspelt": lambda f, d: (None, {"model__init_args__hiden": 3}, ["hiden"]),
    "hidden": lambda f, d: (None, {"model__init_args__hidden": 0}, ["hidden=0"]),
    "learning rate": lambda f, d: (
        None,
        {"model__init_args__learning_rate": -1},
        ["learning_rate=-1"],
    ),
    "name of a reference": lambda f, d: (
        None,
        {"model__init_args__name": "individual"},
        ["'individual'"],
    ),
    "name of a callback": lambda f, d: (
        None,
        {
            "model__init_args__name": "m_ties",
            "trainer__callbacks": [{"class_path": "lightning_merge.callbacks.MTiesMerge"}],
        },
        ["'m_ties'", "taken"],
    ),
    "head of another width": lambda f, d: (
        save_heads({task: CosineHead(torch.eye(3), 1.0) for task in TASKS}, f.heads),
        {},
        [f.heads, "'reds'", "(3, 3)"],
    ),
    "no GPU": lambda f, d: (None, {"trainer__accelerator": "gpu"}, ["trainer:"]),
    "epochs": lambda f, d: (None, {"trainer__max_epochs": -2}, ["trainer.max_epochs=-2"]),
    "checkpoint": lambda f, d: (None, {"ckpt_path": "nope.ckpt"}, ["ckpt_path='nope.ckpt'"]),
    "weights for a checkpoint": lambda f, d: (None, {"ckpt_path": f.base}, [f.base, "ckpt_path"]),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, files, root):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("finished")
    path = write_config(folder / "config.yaml", files, root, trainer__max_epochs=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
        assert main(["fit", "--config", str(path)]) == 0
    return folder / "run"


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("over", [False, True], ids=["a new run", "a finished run"])
@pytest.mark.parametrize("fault", FAULTS)
def test_fit(run, config, own_files, own_root, tmp_path, finished, fault, over):
    """What is there stays as it is, even where the user lets it be replaced."""
    if fault == "no GPU" and torch.cuda.is_available():
        pytest.skip("there is one")
    _, changes, words = FAULTS[fault](own_files, own_root)
    if over:
        shutil.copytree(finished, tmp_path / "run")
    before = content(tmp_path / "run"), sorted(own_files.folder.iterdir())
    result = run(
        "fit", "--config", config(own_files, own_root, **changes), "--overwrite", str(over).lower()
    )
    expect_refusal(result, *words)
    assert len(result.err.splitlines()) < 15
    assert (content(tmp_path / "run"), sorted(own_files.folder.iterdir())) == before
    assert not list(tmp_path.rglob("*.tmp*"))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--model.lerner=free", "model: unknown option 'lerner'; did you mean learner?"),
        ("--model.learner=fre", "model.learner=fre: give one of 'mlp2', 'mlp4', 'transformer2'"),
        ("--model.rank=1.5", "model.rank=1.5: give a whole number"),
        ("--model.zoo.bse=x", "unknown option --model.zoo.bse; did you mean --model.zoo.base?"),
        ("--model.zoo=null", "missing: --model.zoo.base, --model.zoo.experts"),
        ("--model.encoder=MiniVit", "model.encoder: unknown encoder 'MiniVit'; did"),
        (
            "--model.encoder.init_args.widht=3",
            "model.encoder: unknown option 'widht'; did you",
        ),
        ("--model=StatMerging", "model: unknown model 'StatMerging'; did you mean Sta"),
        ("--data.batchsize=3", "unknown option --data.batchsize; did you mean --data.batch_size"),
        ("--trainer.callbacks+=lightning_merge.callbacks.MergeCal", "did you mean MergeCallback?"),
        ("--trainer.precision=bf17", "trainer.precision=bf17: give a whole number or one of"),
        ("--config=nope.yaml", "nope.yaml"),
    ],
)
def test_a_wrong_option_is_told_in_one_line(run, config, option, message):
    result = run("fit", "--config", config(), option)
    expect_refusal(result, message)
    assert len(result.err.splitlines()) == 1


def test_a_checkpoint_of_another_learner(run, config, finished):
    checkpoint = finished / "checkpoints" / "last.ckpt"
    changes = {"model__init_args__hidden": 16, "ckpt_path": str(checkpoint)}
    expect_refusal(run("test", "--config", config(**changes)), "does not fit the model's learner")


def test_heads_that_misfit_show_before_experts_are_trained(run, config, own_files, own_root):
    """The recipe's run would fail at once: it is never begun."""
    os.remove(own_files.expert["shapes"])
    save_heads({"reds": CosineHead(torch.eye(3), 1.0)}, own_files.heads)
    recipe = own_files.folder / "recipe.yaml"
    recipe.write_text("nonsense: 1")
    changes = {"model__init_args__zoo__expert_recipe": str(recipe)}
    result = run("fit", "--config", config(own_files, own_root, **changes))
    expect_refusal(result, own_files.heads)
    assert "expert of" not in result.err


@pytest.mark.parametrize(
    ("text", "word"), [("model: [", "bad.yaml"), ("nonsense: 3", "nonsense"), (None, "bad.yaml")]
)
def test_a_bad_config(run, tmp_path, text, word):
    path = tmp_path / "bad.yaml"
    if text:
        path.write_text(text)
    expect_refusal(run("fit", "--config", path), word)


@pytest.fixture
def merge(run, own_files, tmp_path):
    """Run the merge command on the tiny zoo."""

    def call(*options, method="Ties", experts=tuple(TASKS)):
        chosen = [w for t in experts for w in (f"--experts.{t}", own_files.expert[t])]
        return run(
            *("merge", "--base", own_files.base, *chosen, "--method", method),
            *("--output", tmp_path / "merged.safetensors", *options),
        )

    return call


@pytest.mark.parametrize("density", ["7", "-0.1", "nan"])
def test_merge_out_of_bounds(merge, density):
    expect_refusal(merge("--method.density", density), "density")


def test_merge_takes_an_expert_of_each_name(merge, tmp_path):
    expect_refusal(merge("--experts", "{}", experts=[]), "at least 1 is needed")
    expect_refusal(merge(experts=["reds", "reds"]), "--experts.reds is given twice")
    assert not (tmp_path / "merged.safetensors").exists()


def test_merge_names_expert_and_tensor_of_a_nan(merge, own_files, tmp_path):
    name = spoil(own_files, "shapes")
    expect_refusal(merge(method="Average"), "shapes", name)
    assert [p.name for p in tmp_path.glob("*merged*")] == []


@pytest.mark.parametrize("damage", ["missing", "garbage", "architecture"])
def test_merge_of_bad_files(merge, own_files, damage):
    if damage == "architecture":
        another_architecture(own_files)
    else:
        os.remove(own_files.expert["reds"])
    if damage == "garbage":
        write(own_files.expert["reds"], b"\0" * 1000)
    expect_refusal(merge(), "reds")


def test_merge_keeps_an_output_that_exists(merge, tmp_path):
    output = tmp_path / "merged.safetensors"
    output.write_text("precious")
    expect_refusal(merge(), str(output), "--overwrite true")
    assert output.read_text() == "precious"
    assert merge("--overwrite", "true").code == 0
    assert all(torch.isfinite(tensor).all() for tensor in open_checkpoint(output).values())


def test_merge_says_what_a_method_needs(merge):
    told = "MTies needs a network and unlabelled inputs: give --encoder and --data.root"
    expect_refusal(merge(method="MTies"), told)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--method.denisty", "0.2"], "denisty"),
        (["--ouptut", "x"], "ouptut"),
        (["--method", "Tie"], "Tie"),
    ],
)
def test_merge_with_a_misspelt_option(merge, options, word):
    expect_refusal(merge(*options), word)


@pytest.mark.parametrize("command", ["fitt", "merge"])
def test_the_program_exits_with_2(command, tmp_path):
    """Through the shell: an unknown command, and one without what it requires."""
    words = [command, *(["--base", "x"] if command == "merge" else [])]
    done = subprocess.run(
        [sys.executable, "-m", "lightning_merge", *words], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "error:" in done.stderr
    assert "Traceback" not in done.stderr


def test_list_of_something_unknown(run):
    expect_refusal(run("list", "--what", "colours"), "colours")


@pytest.mark.parametrize("rank", ["0", "1"])
def test_what_is_taken_otherwise_than_meant_is_told_once(run, monkeypatch, rank):
    from lightning_merge.cli import main as command
    from lightning_merge.core.errors import warn

    def work(arguments):
        for message in ("first", "second", "first"):
            warn(message)

    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setattr(command, "_run", work)
    result = run("list")
    assert result.code == 0
    assert result.err == ("warning: first\nwarning: second\n" if rank == "0" else "")
