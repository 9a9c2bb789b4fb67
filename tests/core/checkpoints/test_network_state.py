"""Which tensors of what torch.save wrote are the network's, and what is told of the others."""

import collections
import types
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from lightning_merge.core.checkpoints.checkpoint import open_checkpoint
from lightning_merge.core.errors import InputError, InputWarning

A, B = torch.arange(2.0), torch.arange(6.0).view(2, 3)
STATE = {"w": A, "sub.b": B}


@pytest.fixture(params=[True, False], ids=["zip", "legacy"])
def stored(request, tmp_path):
    """Opens what it is given, written in either format."""

    def write(content, **options):
        with warnings.catch_warnings():  # the legacy writer tells of classes without source
            warnings.simplefilter("ignore")
            path = tmp_path / "x.pt"
            torch.save(content, path, _use_new_zipfile_serialization=request.param)
        return open_checkpoint(path, **options)

    return write


def assert_same(found, wanted):
    assert list(found) == list(wanted)
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


class Holder:
    def __init__(self, **attributes):
        self.__dict__.update(attributes)


class Fields(collections.namedtuple("Fields", "a")):
    pass


class Settings(dict):
    pass


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ({"emb": A, "layers": [A, B]}, {"emb": A, "layers.0": A, "layers.1": B}),
        ({"layers": (A, [B, [A]])}, {"layers.0": A, "layers.1.0": B, "layers.1.1.0": A}),
        ([A, B], {"0": A, "1": B}),
        ((STATE, {"epoch": 3}), {"0.w": A, "0.sub.b": B}),
        ({0: {"w": A}, 1: {"w": B}}, {"0.w": A, "1.w": B}),
        ({-1: A, 2.5: B, True: A}, {"-1": A, "2.5": B, "True": A}),
        ({b"w": A, "b": B}, {"w": A, "b": B}),
        ({"pairs": {(0, 1): A, ("a", b"b"): B}}, {"0.1": A, "a.b": B}),
        ({"x": [("w", A), ("b", B)]}, {"x.w": A, "x.b": B}),
        ({"x": [("w", A), ("w", B)]}, {"x.0.1": A, "x.1.1": B}),
        ({"x": [(A, B), (B, A)]}, {"x.0.0": A, "x.0.1": B, "x.1.0": B, "x.1.1": A}),
        ({"x": {("w", A)}}, {"x.w": A}),
        ({"x": frozenset([A]), "y": B}, {"x.0": A, "y": B}),
        ({"x": collections.deque([A, B])}, {"x.0": A, "x.1": B}),
        (
            {"model": STATE, "heads": [{"w": A}, {"w": B}]},
            {"model.w": A, "model.sub.b": B, "heads.0.w": A, "heads.1.w": B},
        ),
        ({"x": collections.OrderedDict({0: A, 1: B})}, {"0": A, "1": B}),
        ({"x": Settings({3: A}), "y": [Settings(w=B)]}, {"x.3": A, "y.0.w": B}),
        ({"x": collections.defaultdict(list, {1: [A]})}, {"1.0": A}),
        ({"net": nn.ModuleList([nn.BatchNorm1d(2, track_running_stats=False)]), "s": [A]}, None),
    ],
)
def test_every_container_names_its_tensors(content, wanted, stored):
    if wanted is None:
        ones, zeros = torch.ones(2), torch.zeros(2)
        wanted = {"net.0.weight": ones, "net.0.bias": zeros, "s.0": A}
    assert_same(stored(content), wanted)


def adam():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(A).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


@pytest.mark.parametrize(
    "more",
    [
        {"optimizer": adam()},
        {"optimizer_states": [adam(), adam()], "lr_schedulers": [{"base": A}], "loops": {"x": [A]}},
        {"whatever": adam()},
        {"g_optim": [adam()], "d_opt": {"m": {0: A}}},
        {"optimizer": {"state": {"w": {"exp_avg": A}, "sub.b": {"exp_avg": B}}}},  # FSDP
        {"rng_state": [torch.get_rng_state()], "cuda_rng_state_all": (A,)},
        {
            "callbacks": {
                "ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5)}
            }
        },
    ],
)
@pytest.mark.parametrize("key", ["model", "state_dict"])
def test_what_training_keeps_is_left_out(key, more, stored):
    assert_same(stored({key: STATE, "epoch": 3, **more}), STATE)


def test_training_state_within_a_network_is_not(stored):
    module = nn.ModuleDict({"callbacks": nn.Linear(2, 2), "optimizer": nn.Linear(2, 2)})
    assert_same(stored(module), module.state_dict())
    flat = {"rng_state": A, "optimizer.w": B}
    assert_same(stored(flat), flat)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"state_dict": STATE, "state_dict_ema": STATE}, "'state_dict_ema' (2 tensors)"),
        ({"state_dict": STATE, "best": A, "heads": [A]}, "'best' (1 tensor), 'heads' (1 tensor)"),
        ({"x": {"state_dict": STATE, "x": [A]}}, "'x.x' (1 tensor)"),
        ({"model": STATE, "callbacks": {"EMA": {"shadow": STATE}}}, "'callbacks' (2 tensors)"),
        ({"model": STATE, "ema": Holder(a=[A], b=B)}, "'ema' (2 in objects or NumPy arrays)"),
        ({**STATE, "x": [Fields(A)]}, "'x.0' (1 in objects"),
        ({**STATE, "x": np.arange(3)}, "'x' (1 in objects or NumPy arrays)"),
        ({**STATE, "x": {((1,),): A, Holder(): B}}, "'x.?' (2 in objects"),
        ({**STATE, 2**80: A}, "'?' (1 in objects"),
    ],
)
def test_what_else_is_left_out_is_told(content, told, stored):
    with pytest.warns(InputWarning) as warned:
        found = stored(content)
    assert_same(found, STATE)
    (message,) = [str(w.message) for w in warned]
    assert "x.pt: " in message
    assert f"left out: {told}" in message
    assert ("state_dict' is read as the network" in message) == ("state_dict" in str(content))


def test_a_prefix_takes_the_other_part(stored):
    ema = {name: -tensor for name, tensor in STATE.items()}
    content = {"state_dict": STATE, "state_dict_ema": ema, "callbacks": {"EMA": [ema]}}
    for prefix in ("state_dict_ema", "callbacks.EMA.0."):
        assert_same(stored(content, prefix=prefix), ema)
    assert_same(stored(content, prefix="state_dict"), STATE)
    assert_same(stored(content, prefix="sub"), {"b": B})
    assert_same(stored({"model": STATE, "ema": ema}, prefix="ema"), ema)
    with pytest.raises(InputError, match=r"Names begin with: w, sub"):
        stored(content, prefix="teacher")


def test_objects_that_hold_each_other(stored):
    trainer = Holder(tensor=A)
    trainer.model = Holder(trainer=trainer, children=[trainer])
    with pytest.warns(InputWarning, match=r"'trainer' \(1 in objects"):
        assert_same(stored({"model": STATE, "trainer": trainer}), STATE)


def test_attributes_of_modules_and_plain_objects_are_not_told(stored):
    module = nn.Linear(2, 2)
    module.history, module.scale = [A], B
    assert_same(stored(module), module.state_dict())
    namespace = types.SimpleNamespace(lr=1, score=np.float64(0.5), shape=torch.Size([2]))
    assert_same(stored({"model": STATE, "args": namespace, "note": [namespace]}), STATE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a.b": A, "a": {"b": B}}, r"two tensors called a\.b"),
        ({"0": A, 0: B}, "two tensors called 0"),
        ({"x": {b"w": A, "w": B}, "y": A}, r"two tensors called x\.w"),
        ({"optimizer": adam()}, "such as an optimizer's, and no network"),
        (adam(), "such as an optimizer's, and no network"),
        ({"params": {"w": np.arange(3), "b": np.arange(3)}}, "no named tensors, but 2 in objects"),
        (Holder(state={"w": A}), "no named tensors, but 1 in objects"),
        ([[[]], {}, ()], "no named tensors: save"),
    ],
)
def test_what_cannot_be_named_is_refused(content, message, stored):
    with pytest.raises(InputError, match=message):
        stored(content)


@pytest.mark.parametrize(
    "more",
    [
        [1] * 80_000,
        [(i, i) for i in range(40_000)],
        [[True] for _ in range(40_000)],
        {"very_long_name_" * 10: [{"j": {"k": 1}} for _ in range(20_000)]},
    ],
    ids=["ones", "pairs", "lists", "deep"],
)
def test_long_lists_beside_a_network(more, tmp_path):
    torch.save({"model": STATE, "history": more}, tmp_path / "x.pt")
    assert_same(open_checkpoint(tmp_path / "x.pt"), STATE)
