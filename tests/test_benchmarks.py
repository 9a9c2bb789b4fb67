"""The benchmark at a tiny size: its checkpoints, its measurements, its tables."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))  # its files import each other as siblings, as scripts do

import measure  # noqa: E402
import memory_format  # noqa: E402
import report  # noqa: E402
import scales  # noqa: E402
from agreement import compare  # noqa: E402
from checkpoints import TOWERS, make_checkpoints  # noqa: E402
from contenders import METHODS, FusionBench, LightningMerge, Mergekit  # noqa: E402
from m_ties import time_m_ties  # noqa: E402

MIB = 1 << 20


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_checkpoints(tmp_path_factory.mktemp("tiny"), TOWERS["tiny"], experts=2)


@pytest.mark.parametrize(
    ("tower", "name"), [("vit_b32", "ViT-B-32"), ("vit_h14", "ViT-H-14")], ids=["b32", "h14"]
)
def test_layout_is_that_of_open_clip(tower, name):
    open_clip = pytest.importorskip("open_clip")
    config = open_clip.get_model_config(name)
    with torch.device("meta"):
        vision = open_clip.model.CLIPVisionCfg(**config["vision_cfg"])
        visual = open_clip.model._build_vision_tower(config["embed_dim"], vision)
    expected = {key: tuple(tensor.shape) for key, tensor in visual.state_dict().items()}
    assert TOWERS[tower].layout() == expected


def test_checkpoints_are_made_once(tiny):
    before = {path: path.stat().st_mtime_ns for path in tiny.files}
    again = make_checkpoints(tiny.base.parent, TOWERS["tiny"], experts=2)
    assert {path: path.stat().st_mtime_ns for path in again.files} == before


def test_experts_lie_near_the_base_and_apart(tiny):
    base, *experts = (load_file(path) for path in tiny.files)
    name = "transformer.resblocks.2.mlp.c_fc.weight"
    moved = [(expert[name] - base[name]).std().item() for expert in experts]
    assert all(0.0002 < size < 0.005 for size in moved)
    assert moved[0] != pytest.approx(moved[1], rel=0.01)
    assert base[name].std().item() == pytest.approx(0.02, rel=0.05)


def test_agreement_sees_one_entry(tiny, tmp_path):
    expert = load_file(tiny.experts["task0"])
    expert["proj"][3, 4] += 0.5
    save_file(expert, tmp_path / "changed.safetensors")
    found = compare(tiny.base, tiny.experts["task0"], tmp_path / "changed.safetensors")
    assert found.largest == pytest.approx(0.5)
    assert found.apart == 1
    assert found.entries == sum(tensor.numel() for tensor in expert.values())


def test_memory_of_a_process_and_its_child_is_seen(tmp_path):
    child = "import time; block = bytearray(b'1') * (60 << 20); time.sleep(2)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    command = [sys.executable, "-S", "-c", parent]
    found = measure.run(command, log=tmp_path / "log", folder=tmp_path, limit=1 << 40)
    assert found.code == 0
    assert 60 * MIB < found.anonymous < 110 * MIB
    assert found.wall > 2


def test_a_process_above_the_limit_is_ended(tmp_path):
    code = "import time; block = bytearray(b'1') * (60 << 20); time.sleep(20)"
    command = [sys.executable, "-c", code]
    found = measure.run(command, log=tmp_path / "log", folder=tmp_path, limit=50 * MIB)
    assert found.code < 0
    assert found.wall < 15


def test_floors_move_every_byte(tmp_path):
    path = tmp_path / "bytes"
    path.write_bytes(bytes(9 * MIB + 5))
    for threads in (1, 3):
        assert measure.read_seconds([path, path], threads) > 0
    assert min(measure.write_seconds(tmp_path / "copy", 9 * MIB + 5)) >= 0
    assert not (tmp_path / "copy").exists()
    fraction = measure.cached_fraction([path], samples=4)
    assert fraction == 1 or math.isnan(fraction)  # tmpfs, for one, does not tell


def test_table_gives_ratios_and_memory_above_imports():
    def row(tool, wall, mib):
        return report.Row("average", tool, [measure.Run(wall, 2 * wall, 9 * MIB, mib * MIB, 0)])

    start, ours, peer = row("ours", 1.0, 100), row("ours", 2.0, 130), row("peer", 6.0, 500)
    assert report.cells(ours, ours, start, 0.5)[4:] == [
        "1.00", "4.00", "1.33", "9", "130 = imports + 30"
    ]  # fmt: skip
    assert report.cells(peer, ours, start, 0.5)[4] == "3.00"


@pytest.mark.parametrize("name", METHODS)
def test_commands_name_every_file(name, tiny, tmp_path):
    for tool in (LightningMerge(Path("p"), 2), Mergekit(Path("p")), FusionBench(Path("p"))):
        if tool.offers(METHODS[name]):
            command = tool.command(METHODS[name], tiny, tmp_path / "model.safetensors")
            recipe = tmp_path / "model.yaml"
            said = " ".join(command) + (recipe.read_text() if str(recipe) in command else "")
            assert all(str(path) in said for path in tiny.experts.values())


def test_one_command_prints_the_table(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "merge.py"), "--work", str(tmp_path)]
    command += ["--model", "tiny", "--experts", "2", "--methods", "lwptv"]
    command += ["--jobs", "1", "2", "--repeat", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| LwPTV + task arithmetic ") == 3  # two of time, one of agreement
    assert "| 0.0e+00        | 0 of 215680" in done.stdout
    assert "read every input once, 1 thread" in done.stdout


def test_m_ties_beside_its_parts(tiny):
    table = time_m_ties(tiny, TOWERS["tiny"], repeat=1)
    assert "M-TIES / sum" in table


def test_memory_formats_are_measured_in_turns(capsys):
    memory_format.main(["--name", "test_efficientnet", "--size", "32", "--rounds", "1"])
    *_, forward, both = capsys.readouterr().out.strip().splitlines()
    for row, what in ((forward, "forward"), (both, "forward + backward")):
        name, *numbers = (cell.strip() for cell in row.strip("| ").split("|"))
        assert name == what
        assert len(numbers) == 6
        assert all(float(number) > 0 for number in numbers)


def test_ten_scales_are_compared_with_one_merge(tiny, capsys, monkeypatch):
    words = ["--folder", str(tiny.base.parent), "--tower", "tiny", "--experts", "2"]
    monkeypatch.setattr(sys, "argv", ["scales.py", *words])
    scales.main()
    assert "Ties, 2 experts of tiny: one merge" in capsys.readouterr().out
