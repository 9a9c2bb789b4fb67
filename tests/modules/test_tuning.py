"""A space of hyperparameters, and the search in it, without any network."""

import json
import math

import pytest

from lightning_merge.core.errors import InputError
from lightning_merge.methods import Dare, LwPTV, MTies, TaskArithmetic, Ties
from lightning_merge.modules.space import Range, Space
from lightning_merge.modules.tuning import Score, Search


def score(method) -> Score:
    """Best at scale 0.4 and density 0.2, and a little worse for other densities."""
    average = math.exp(-(math.log(method.scale / 0.4) ** 2)) - abs(method.density - 0.2) / 10
    return Score(average, {"task": average}, 0.0)


@pytest.fixture
def search(tmp_path):
    space = Space(Ties(), {"scale": Range(0.01, 10.0, log=True), "density": Range(0.1, 0.9)})

    def make(name="trials.json", trials=25, **options) -> Search:
        return Search(space, tmp_path / name, trials, **options)

    return make


def ignore(trial):
    """Report nothing."""


@pytest.mark.parametrize("seed", range(3))
def test_tpe_comes_nearer_than_the_method_as_given(search, seed):
    found = search(seed=seed)
    found.run(score, ignore)
    assert found.trials[0].point == {"scale": 1.0, "density": 0.2}
    assert found.best.score.average > 0.9 > found.trials[0].score.average
    assert found.best.score.average == max(trial.score.average for trial in found.trials)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
@pytest.mark.parametrize("stop", [1, 9, 14])
def test_a_search_goes_on_as_if_it_had_not_stopped(search, sampler, stop):
    whole = search("whole.json", sampler=sampler, seed=5)
    whole.run(score, ignore)
    calls = []

    def interrupted(method):
        if len(calls) == stop:
            raise KeyboardInterrupt
        calls.append(method)
        return score(method)

    with pytest.raises(KeyboardInterrupt):
        search(sampler=sampler, seed=5).run(interrupted, ignore)
    again = search(sampler=sampler, seed=5)
    assert len(again.trials) == stop
    again.run(score, ignore)
    assert again.trials == whole.trials
    assert search("other.json", sampler=sampler, seed=6)._point(3) != whole.trials[3].point


def test_the_file_has_all_that_is_known_after_every_trial(search, tmp_path):
    seen = []

    def report(trial):
        seen.append(trial)
        rows = json.loads((tmp_path / "trials.json").read_text())
        assert [row["point"] for row in rows] == [trial.point for trial in seen]

    search(trials=3).run(score, report)
    assert len(seen) == 3


def test_a_point_that_comes_again_is_not_merged_again(tmp_path):
    few = Range(choices=[0.1, 0.2, 0.3])
    found = Search(Space(Ties(), {"density": few, "scale": few}), tmp_path / "t.json", 8, "random")
    calls = []

    def counted(method):
        calls.append(method)
        return score(method)

    found.run(counted, ignore)
    assert len(found.trials) == 8
    assert len(calls) == len({str(trial.point) for trial in found.trials}) < 8


@pytest.mark.parametrize("first", [1, 2, 3])
def test_the_rest_of_a_small_space_is_tried_when_trials_suffice_for_it(tmp_path, first):
    """Fewer trials than points are sampled, and may come twice."""
    choices = {"density": [0.1, 0.2], "combine": ["mean", "sum"]}
    space = Space(Ties(), {name: Range(choices=values) for name, values in choices.items()})

    def points(trials):
        search = Search(space, tmp_path / "trials.json", trials)
        search.run(score, ignore)
        assert search.total == len(search.trials)
        return [tuple(trial.point.values()) for trial in search.trials]

    sampled, every = points(first), points(4)
    assert len(sampled) == first
    assert every[:first] == sampled
    assert len(set(every)) == 4
    assert len(every) == 4 + first - len(set(sampled))
    assert points(4) == every


def test_whole_numbers_stay_whole(tmp_path):
    method = TaskArithmetic(transforms=[Dare(seed=3)])
    space = Space(method, {"Dare.seed": Range(1, 50)})
    assert space.given() == {"Dare.seed": 3}
    assert [p["Dare.seed"] for p in space.points(50)] == list(range(1, 51))
    assert space.points(49) is None
    assert space.method_at({"Dare.seed": 7}).transforms[0] == Dare(seed=7)
    with pytest.raises(InputError, match=r"low=0\.5, high=3 must be integers"):
        Space(method, {"Dare.seed": Range(0.5, 3)})


def test_only_the_transform_that_is_named_changes():
    method = TaskArithmetic(transforms=[LwPTV(), Dare()])
    space = Space(method, {"LwPTV.prune_ratio": Range(0.1, 0.9), "scale": Range(0.1, 1)})
    changed = space.method_at({"LwPTV.prune_ratio": 0.25, "scale": 0.5})
    assert changed == TaskArithmetic(0.5, transforms=(LwPTV(0.25), Dare()))
    assert method.transforms == [LwPTV(), Dare()]


def test_an_end_counts_as_out_of_bounds_only_if_nothing_goes_with_it():
    Space(MTies(keep=0.5, spread=0.1), {"keep": Range(0.05, 0.9), "spread": Range(0.0, 0.1)})
    with pytest.raises(InputError, match=r"space\.keep"):
        Space(MTies(keep=0.5, spread=0.1), {"keep": Range(0.05, 0.9)})


def test_two_transforms_of_a_kind_cannot_be_told_apart():
    method = TaskArithmetic(transforms=[LwPTV(0.1), LwPTV(0.2)])
    with pytest.raises(InputError, match="LwPTV must name exactly one part"):
        Space(method, {"LwPTV.prune_ratio": Range(0.1, 0.9)})
    with pytest.raises(InputError, match="are chosen, too; give only one"):
        Space(
            TaskArithmetic(transforms=[LwPTV()]),
            {"transforms": Range(choices=[[]]), "LwPTV.prune_ratio": Range(0.1, 0.9)},
        )
