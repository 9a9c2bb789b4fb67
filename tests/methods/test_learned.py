"""LearnedCoefficients: which coefficient goes where, by name, by depth and by statistics."""

import json

import pytest
import torch

from lightning_merge.core.checkpoints.checkpoint import open_checkpoint, save_checkpoint
from lightning_merge.core.errors import InputError
from lightning_merge.core.vectors.learner import StatsMergeLearner
from lightning_merge.core.vectors.statistics import layer_statistics, standardize
from lightning_merge.methods import LearnedCoefficients, LwPTV
from lightning_merge.methods.learned import same_depth

TASKS = ["cars", "signs", "digits"]


@pytest.fixture
def weights():
    """Function that makes a base of L small matrices and its experts."""

    def make(layers, tasks=TASKS, prefix="block"):
        generator = torch.Generator().manual_seed(layers)

        def draw():
            shapes = {f"{prefix}{i}": (4, 5) if i % 2 else (6,) for i in range(layers)}
            return {n: torch.randn(shape, generator=generator) for n, shape in shapes.items()}

        return draw(), {task: draw() for task in tasks}

    return make


def formula(base, experts, values):
    """theta_0 + sum_k c_kl tau_kl in plain words; values[task][name]."""
    return {
        name: tensor + sum(values[t][name] * (experts[t][name] - tensor) for t in experts)
        for name, tensor in base.items()
    }


def assert_close(got, want):
    assert set(got) == set(want)
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stored", ["", "model.visual."])
def test_by_layer_finds_tasks_and_layers_by_name(weights, save_learned, stored):
    base, experts = weights(4, ["digits", "cars"])
    layers = ["other", "block2", "block0", "block3", "block1"]
    file = save_learned(TASKS, [stored + name for name in layers], learner=None)
    table = open_checkpoint(file)["coefficients"]
    values = {
        task: {name: table[TASKS.index(task), layers.index(name)] for name in base}
        for task in experts
    }
    assert_close(LearnedCoefficients(file)(base, experts), formula(base, experts, values))


@pytest.mark.parametrize(
    ("tasks", "layers", "names"),
    [
        (["cars"], 4, ["signs, digits", "'depth'"]),
        (TASKS, 2, ["block2, block3", "'statistics'"]),
    ],
)
def test_by_layer_names_what_is_missing(weights, save_learned, tasks, layers, names):
    file = save_learned(tasks, [f"block{i}" for i in range(layers)])
    with pytest.raises(InputError) as fault:
        LearnedCoefficients(file)(*weights(4))
    assert all(part in str(fault.value) for part in (file, *names))


BLOCKS = [f"block{i}" for i in range(5)]
OTHERS = {"text.weight": torch.ones(3, 2), "logit_scale": torch.tensor(4.6)}


def in_a_larger_file(weights, number, of=TASKS, prefix="model.visual.", others=OTHERS):
    """Base and experts under a prefix, beside tensors that nobody has changed, in front of them."""
    base, experts = weights(number, of)
    whole = [{**others, **{prefix + n: t for n, t in w.items()}} for w in (base, *experts.values())]
    return base, experts, whole[0], dict(zip(experts, whole[1:], strict=True))


@pytest.mark.parametrize("scope", ["all", "changed"])
@pytest.mark.parametrize("prefix", ["", "model.visual.", "encoder.backbone."])
def test_by_layer_finds_the_layers_in_a_larger_file(weights, save_learned, scope, prefix):
    base, experts, whole, experts_whole = in_a_larger_file(weights, 5, prefix=prefix)
    method = LearnedCoefficients(save_learned(TASKS, BLOCKS))
    merged, plain = method(whole, experts_whole, scope=scope), method(base, experts)
    assert all(torch.equal(merged[prefix + name], plain[name]) for name in base)
    assert all(torch.equal(merged[name], OTHERS[name]) for name in OTHERS)


@pytest.mark.parametrize("scope", ["all", "changed"])
def test_by_layer_refuses_a_changed_tensor_that_it_does_not_know(weights, save_learned, scope):
    _, _, whole, experts = in_a_larger_file(weights, 5)
    experts["cars"] = experts["cars"] | {"text.weight": torch.zeros(3, 2)}
    method = LearnedCoefficients(save_learned(TASKS, BLOCKS))
    message = r"no coefficients of text.weight.*--ignore '\[text.weight"
    with pytest.raises(InputError, match=message):
        method(whole, experts, scope=scope)


def test_by_depth_is_refused_where_it_would_mix_up_the_runs_own_layers(weights, save_learned):
    """Two tensors more in front move every layer by two."""
    base, experts, whole, experts_whole = in_a_larger_file(weights, 5)
    method = LearnedCoefficients(save_learned(TASKS, BLOCKS), by="depth")
    with pytest.raises(InputError, match=r"by='depth'.*choose by='layer'"):
        method(whole, experts_whole)
    merged, plain = method(whole, experts_whole, scope="changed"), method(base, experts)
    assert all(torch.equal(merged[f"model.visual.{name}"], plain[name]) for name in base)


@pytest.mark.parametrize("source", [1, 2, 5, 22, 320])
@pytest.mark.parametrize("layers", [1, 2, 5, 22, 320])
def test_the_same_depth_is_the_nearest_relative_position(layers, source):
    found = same_depth(layers, source)
    assert len(found) == layers
    depths = torch.linspace(0, 1, layers, dtype=torch.float64) if layers > 1 else torch.zeros(1)
    others = torch.linspace(0, 1, source, dtype=torch.float64)
    distances = (depths[:, None] - others).abs()
    chosen = distances[range(layers), found]
    torch.testing.assert_close(chosen, distances.min(1).values, rtol=0, atol=1e-12)
    assert found == sorted(found)
    assert found[0] == 0
    if layers > 1:
        assert found[-1] == source - 1
    if layers == source:
        assert found == list(range(layers))


def test_a_depth_in_the_middle_of_two_layers_is_the_deeper():
    assert same_depth(3, 4) == [0, 2, 3]
    assert same_depth(3, 6) == [0, 3, 5]


def test_by_depth_merges_another_architecture_and_unknown_tasks(weights, save_learned):
    base, experts = weights(3, ["planes", "signs"], prefix="stage")
    file = save_learned(TASKS, [f"block{i}" for i in range(7)], learner=None)
    table = open_checkpoint(file)["coefficients"]
    rows = {"planes": (table[0] + table[1] + table[2]) / 3, "signs": table[1]}
    values = {
        task: {"stage0": row[0], "stage1": row[3], "stage2": row[6]} for task, row in rows.items()
    }
    merged = LearnedCoefficients(file, by="depth")(base, experts)
    assert_close(merged, formula(base, experts, values))


@pytest.mark.parametrize("blocks", [(0, 1, 10, 2), (0, 10, 2, 9)])
def test_by_depth_refuses_alphabetical_order(save_learned, blocks):
    base = {f"block{i}": torch.zeros(2) for i in blocks}
    expert = {name: tensor + 1 for name, tensor in base.items()}
    file = save_learned(TASKS, ["a", "b"])
    with pytest.raises(InputError, match=r"(?s)base.*alphabetical.*state_dict"):
        LearnedCoefficients(file, by="depth")(base, {"cars": expert})
    LearnedCoefficients(file, by="statistics")(base, {"cars": expert})
    ordered = {name: base[name] for name in sorted(base, key=lambda name: int(name[5:]))}
    LearnedCoefficients(file, by="depth")(ordered, {"cars": expert})


def options(**changes):
    return {
        "kind": "mlp2", "level": "layer", "normalize": "none", "prior": 0.3, "hidden": 8,
        "features": ["mean", "norm", "singular_values"], "rank": 2, "statistics_of": "experts",
    } | changes  # fmt: skip


@pytest.mark.parametrize(
    "learner",
    [
        options(),
        options(kind="mlp4", level="task", features=["variance"], rank=0),
        options(kind="transformer2", statistics_of="task_vectors"),
        options(normalize="softmax"),
        options(normalize="clamp", prior=0.6),
    ],
    ids=lambda learner: "-".join([learner["kind"], learner["level"], learner["normalize"]]),
)
@pytest.mark.parametrize(("layers", "tasks"), [(2, ["a", "b"]), (7, ["a", "b", "c", "d"])])
def test_by_statistics_is_the_learner_on_these_experts(
    weights, save_learned, learner, layers, tasks
):
    base, experts = weights(layers, tasks)
    file = save_learned(TASKS, ["x", "y"], learner, scale=0.7)
    theta = {n: torch.stack([e[n] for e in experts.values()]) for n in base}
    if learner["statistics_of"] == "task_vectors":
        theta = {name: stack - base[name] for name, stack in theta.items()}
    features = layer_statistics(theta.values(), learner["rank"], learner["features"])
    made = StatsMergeLearner(
        standardize(features),
        **{k: learner[k] for k in ("kind", "level", "normalize", "prior", "hidden")},
    )
    stored = open_checkpoint(file, prefix="learner")
    made.load_state_dict(dict(stored))
    table = 0.7 * made().detach()
    assert table.std() > 1e-4  # 100 times what the comparison lets pass
    values = {t: dict(zip(base, row, strict=True)) for t, row in zip(experts, table, strict=True)}
    merged = LearnedCoefficients(file, by="statistics")(base, experts)
    assert_close(merged, formula(base, experts, values))


@pytest.mark.parametrize("of", ["experts", "task_vectors"])
def test_statistics_are_those_of_transformed_experts(weights, save_learned, of):
    base, experts = weights(6)
    file = save_learned(TASKS, ["x"], options(statistics_of=of))
    mask = LwPTV(prune_ratio=0.5)
    masked = LearnedCoefficients(file, by="statistics", transforms=[mask])
    vectors = masked.task_vectors(base, experts)
    kept = {n: bool(vectors[n].any()) for n in base}
    assert 0 < sum(kept.values()) < len(kept)
    left = {t: {n: w if kept[n] else base[n] for n, w in e.items()} for t, e in experts.items()}
    plain = LearnedCoefficients(file, by="statistics")
    expected = plain.coefficients(plain.task_vectors(base, left))
    assert torch.equal(masked.coefficients(vectors), expected)
    assert not torch.allclose(expected, plain.coefficients(plain.task_vectors(base, experts)))
    assert_close(masked(base, experts), plain(base, left))


@pytest.mark.parametrize(
    ("learner", "message"),
    [
        (None, "without a network that reads statistics"),
        (options(kind="free"), "without a network that reads statistics"),
    ],
)
def test_by_statistics_needs_a_learner_that_sees_them(weights, save_learned, learner, message):
    file = save_learned(TASKS, ["x"], learner)
    with pytest.raises(InputError, match=message):
        LearnedCoefficients(file, by="statistics")(*weights(2))


@pytest.mark.parametrize("change", [{"hidden": 16}, {"rank": 3}, {"colour": "red"}, {"kind": None}])
def test_a_learner_that_does_not_fit_its_weights(weights, save_learned, tmp_path, change):
    stored = open_checkpoint(save_learned(TASKS, ["x"], options()))
    changed = {k: v for k, v in (options() | change).items() if v is not None}
    if "kind" in change:
        changed = {"kind": "mlp2"}
    metadata = stored.metadata | {"learner": json.dumps(changed)}
    file = str(save_checkpoint(dict(stored), tmp_path / "c.safetensors", metadata=metadata))
    with pytest.raises(InputError, match="learner cannot be rebuilt"):
        LearnedCoefficients(file, by="statistics")(*weights(2))


@pytest.mark.parametrize("by", ["layer", "depth", "statistics"])
@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({"weight": torch.ones(3, 2)}, {"tasks": json.dumps(TASKS), "layers": '["a", "b"]'}),
        ({"coefficients": torch.ones(3, 2)}, {"tasks": json.dumps(TASKS)}),
        ({"coefficients": torch.ones(2, 3)}, {"tasks": json.dumps(TASKS), "layers": '["a", "b"]'}),
        ({"coefficients": torch.ones(3, 1)}, {"tasks": json.dumps(TASKS), "layers": "no json"}),
        (
            {"coefficients": torch.full((3, 1), torch.nan)},
            {"tasks": json.dumps(TASKS), "layers": '["a"]'},
        ),
    ],
    ids=["no tensor", "no layers", "other shape", "no json", "nan"],
)
def test_another_file_is_named(weights, tmp_path, by, tensors, metadata):
    file = str(save_checkpoint(tensors, tmp_path / "other.safetensors", metadata=metadata))
    with pytest.raises(InputError, match=r"other\.safetensors.*coefficients\.safetensors of a run"):
        LearnedCoefficients(file, by=by)(*weights(2))


def test_a_missing_file_and_an_unknown_way_are_named(weights, tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.safetensors"):
        LearnedCoefficients(str(tmp_path / "nowhere.safetensors"))(*weights(2))
    with pytest.raises(InputError, match="by='width'"):
        LearnedCoefficients("x", by="width")


def test_what_it_writes_into_files_changes_with_the_file(save_learned):
    one, two = (save_learned(TASKS, layers) for layers in (["a"], ["b"]))
    lines = [LearnedCoefficients(file, by="depth").described() for file in (one, two)]
    assert lines[0].startswith(f"LearnedCoefficients(file={one!r}, by='depth', transforms=()")
    assert lines[0].split("sha256")[1] != lines[1].split("sha256")[1]
