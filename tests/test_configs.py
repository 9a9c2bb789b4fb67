"""Every shipped config: accepted by the classes it names, and clear about files that lack."""

import json
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import open_clip
import pytest
import yaml
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from open_clip.transform import PreprocessCfg
from tiny_texts import network, t5
from torch import nn

from lightning_merge.callbacks import MergeCallback
from lightning_merge.cli.main import main
from lightning_merge.cli.parser import Parser
from lightning_merge.data import MergeDataModule
from lightning_merge.models import Encoder, from_open_clip, from_transformers, text_encoder
from lightning_merge.models import t5 as models_t5
from lightning_merge.modules import TaskModule
from lightning_merge.runs.grid import (
    START,
    Variant,
    experts_of,
    of_methods,
    read_group,
    variants_of,
)
from lightning_merge.runs.suite import Suite

ROOT = Path(__file__).resolve().parents[1]


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "configs" / name).read_text(encoding="utf-8"))


CONFIGS = sorted(
    f.relative_to(ROOT / "configs").as_posix() for f in ROOT.rglob("configs/**/*.yaml")
)
CLAIMS = [name for name in CONFIGS if name.startswith("claims/")]  # laid over those of a suite
GRIDS = [name for name in CONFIGS if "suites" in read(name)]
FITS = [name for name in CONFIGS if "trainer" in read(name) and name not in CLAIMS]
TUNES = [name for name in CONFIGS if "space" in read(name)]
MERGES = [name for name in CONFIGS if "method" in read(name) and name not in TUNES]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """A folder without the files that configs name, and a shell without arguments."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning_merge"])


@pytest.fixture(autouse=True)
def _tiny_towers(monkeypatch):
    """No test waits for a hundred million random numbers: towers of open_clip have two."""
    tower = nn.Linear(1, 1)
    tower.preprocess_cfg = asdict(PreprocessCfg())
    monkeypatch.setattr(
        open_clip, "create_model", lambda *_, **__: nn.ModuleDict({"visual": tower})
    )


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    """Names of the Hub lead to nothing, quickly."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_every_config_belongs_to_one_command():
    assert sorted(FITS + MERGES + TUNES + CLAIMS + GRIDS) == CONFIGS


@pytest.fixture
def tower(tmp_path):
    """A folder as the Hub's, of a tower that is made in no time."""
    fields = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = {"model_type": "clip_vision_model", **fields, "num_attention_heads": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.fixture
def texts(tmp_path, monkeypatch):
    """Tiny networks of text in the place of those that configs name."""
    network(tmp_path / "bert", max_position_embeddings=128)
    t5(tmp_path / "t5")
    monkeypatch.setattr(text_encoder, "source_folder", lambda *_: tmp_path / "bert")
    monkeypatch.setattr(models_t5, "source_folder", lambda *_: tmp_path / "t5")


@pytest.mark.parametrize("name", FITS)
def test_fit_accepts(name, monkeypatch, tower, texts):
    monkeypatch.setattr(Encoder, "load", lambda self, source: self)
    monkeypatch.setattr(from_open_clip, "open_checkpoint", lambda path: None)
    monkeypatch.setattr(from_transformers, "_folder", lambda argument, source: tower)
    monkeypatch.setattr(from_transformers, "_projection", lambda source, required: None)
    options = ["--trainer.logger=false", "--trainer.accelerator=cpu", "--data.source=drawn"]
    if isinstance(read(name)["trainer"].get("strategy"), dict):  # FSDP is for GPUs
        options += ["--trainer.strategy=auto"]
    cli = LightningCLI(
        TaskModule,
        MergeDataModule,
        args=["--config", str(ROOT / "configs" / name), *options],
        subclass_mode_model=True,
        auto_configure_optimizers=False,
        save_config_callback=None,
        run=False,
    )
    assert cli.trainer.max_epochs == read(name)["trainer"]["max_epochs"]


class FitParser(Parser, LightningArgumentParser):
    """The parser of `fit`, without commands."""


@pytest.fixture(scope="module")
def fit():
    """The parser of `fit`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lightning_merge"])
        config = str(ROOT / "configs" / "mini" / "sml.yaml")
        return LightningCLI(
            TaskModule,
            MergeDataModule,
            args=["--config", config, "--trainer.logger=false"],
            subclass_mode_model=True,
            auto_configure_optimizers=False,
            save_config_callback=None,
            parser_class=FitParser,
            run=False,
        ).parser


def grid(name: str) -> dict[str, Any]:
    """The options of a grid's config, its suites in this checkout."""
    options = read(name)
    for suite in options["suites"].values():
        suite["folder"] = str(ROOT / suite["folder"])
    return options


def accepted(fit, variant, suite, tmp_path):
    """Let fit take a variant over its suite's config; it announces the candidates that it has."""
    file = tmp_path / "overlay.yaml"
    file.write_text(json.dumps(variant.overlay(suite)))
    over = suite.file(variant.over or suite.config)
    words = ["--config", str(over), "--config", str(file), "--trainer.logger=false"]
    run = fit.instantiate_classes(fit.parse_args(words))
    named = [c.name for c in run.trainer.callbacks if isinstance(c, MergeCallback)]
    own = [] if run.model.name == START else [run.model.name]
    assert [*own, *named] == variant.rows
    assert bool(own) == (run.trainer.max_epochs > 0)


@pytest.mark.parametrize("group", CLAIMS)
def test_fit_accepts_every_variant_of_a_claim(group, fit, tmp_path):
    suite = Suite(**grid("mini/claims.yaml")["suites"]["mini"])
    for variant in read_group(ROOT / "configs" / group):
        accepted(fit, variant, suite, tmp_path)


@pytest.mark.parametrize("name", GRIDS)
def test_fit_accepts_every_row_of_a_grid(name, fit, tmp_path):
    options = grid(name)
    suites = [Suite(**suite) for suite in options["suites"].values()]
    rows = variants_of(options.get("rows", {}))
    methods = options.get("methods", {})
    rows += of_methods(methods, {})
    first = dict([*methods.items()][:1])  # transforms are those of every method
    rows += [*of_methods(first, options.get("transforms", {}))][1:]
    for suite in suites:
        assert experts_of(suite, suite.config, 1, Variant("row", {}))["model.zoo.expert_seed"] == 1
        for variant in rows:
            accepted(fit, variant, suite, tmp_path)


def test_variants_with_fewer_images_take_as_many_steps():
    suite = Suite(**grid("mini/claims.yaml")["suites"]["mini"])
    group = read_group(ROOT / "configs/claims/stats_merging/teaching.yaml")
    found = {variant.name: variant.overlay(suite) for variant in group}
    assert found["sml_layer"]["trainer"]["max_epochs"] == 4
    assert found["images_5%"]["trainer"]["max_epochs"] == 100
    assert found["images_5%"]["model"]["init_args"]["step_size"] == 50


def test_masks_come_before_trimming():
    suite = Suite(**grid("mini/claims.yaml")["suites"]["mini"])
    group = read_group(ROOT / "configs/claims/stats_merging/forms.yaml")
    found = {variant.name: variant.behind_lwptv() for variant in group}
    overlay = found["adamerging_layer_pp"].overlay(suite)
    names = [c["class_path"].split(".")[-1] for c in overlay["trainer"]["callbacks"]]
    assert names == ["PruneTaskVectors", "TrimTaskVectors", "CoefficientMap"]
    assert overlay["model"]["init_args"] == {"name": "adamerging_layer_pp_lwptv"}


def test_variants_of_one_name_are_the_same_in_all_groups():
    known: dict[str, Variant] = {}
    for group in CLAIMS:
        found = read_group(ROOT / "configs" / group)
        rows = [row for variant in found for row in variant.rows]
        assert len(rows) == len(set(rows)), group
        for variant in found:
            assert known.setdefault(variant.name, variant) == variant
    assert len({Path(group).stem for group in CLAIMS}) == len(CLAIMS)


@pytest.mark.parametrize("name", [n for n in FITS if read(n)["data"].get("source") != "drawn"])
def test_fit_names_a_missing_file(name, tmp_path, capsys):
    options = []
    if read(name)["data"].get("source") == "pool":
        options = ["--data.root", "data/pool.safetensors"]
    elif str(read(name)["model"]["init_args"].get("base")).startswith("package:"):
        options = ["--data.root", "no/data"]  # the base may be here, and the images lack next
    assert main(["fit", "--config", str(ROOT / "configs" / name), *options]) == 2
    _names_one_of([*files(read(name)), *options[1:]], capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", MERGES)
def test_merge_names_a_missing_file(name, tmp_path, capsys):
    assert main(["merge", "--config", str(ROOT / "configs" / name)]) == 2
    _names_one_of([read(name)["base"]], capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", TUNES)
def test_tune_names_a_missing_file(name, tmp_path, capsys):
    assert main(["tune", "--config", str(ROOT / "configs" / name)]) == 2
    _names_one_of([*files(read(name))], capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def _names_one_of(paths: list[str], message: str) -> None:
    assert message.startswith("error: ")
    assert any(path in message for path in paths), message


def files(value: Any) -> Iterator[str]:
    """Every text of a config that is a path, or a package of weights."""
    if isinstance(value, str) and ("/" in value or value.startswith("package:")):
        yield value
    for part in value.values() if isinstance(value, dict) else ():
        yield from files(part)


def test_published_m_ties_differs_from_the_paper_as_its_code_does():
    for suite in ("vit_b32", "vit_l14"):
        paper, published = (read(f"{suite}/{n}.yaml") for n in ("m_ties", "m_ties_published"))
        assert paper["method"]["init_args"].keys() == {"keep", "spread"}
        assert published["method"]["init_args"].keys() >= {"layer_inputs", "reduce", "activation"}
        for part in ("base", "experts", "encoder", "data"):
            assert paper[part] == published[part]


def test_experts_of_the_hub_are_told_apart_from_files_that_lack(capsys):
    """Offline the message names what cannot be had, and what to give in its place."""
    config = str(ROOT / "configs" / "vit_b32" / "fusionbench.yaml")
    assert main(["fit", "--config", config]) == 2
    told = capsys.readouterr().err
    assert "source='openai/clip-vit-base-patch32'" in told
    assert "give the path of its file or folder instead" in told


COMMANDS = [
    shlex.split(command)[3:]
    for block in re.findall(
        r"^```bash\n(.*?)^```$",
        (ROOT / "docs" / "published.md").read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )
    for command in block.replace("\\\n", " ").strip().splitlines()
]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words[2:5:2]))
def test_commands_for_published_experts_are_understood(words, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as done:
        main([*words, "--print_config"])
    assert done.value.code in (0, None)
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["data"]["tasks"] == words[words.index("--data.tasks") + 1]
