"""Configs of runs within a run: read, given options, and refused."""

import pytest
import yaml

from lightning_merge.core.errors import InputError
from lightning_merge.runs.recipe import ON_ONE_DEVICE, Recipe


def recipe(folder, config, name="recipe.yaml"):
    path = folder / name
    path.write_text(config if isinstance(config, str) else yaml.safe_dump(config))
    return Recipe(str(path), "zoo.expert_recipe")


def test_options_replace_those_of_the_file_and_leave_the_others(tmp_path):
    config = {
        "seed_everything": 3,
        "model": {"class_path": "FineTune", "init_args": {"learning_rate": 0.1, "output": "x"}},
        "data": {"batch_size": 20},
    }
    given = recipe(tmp_path, config)
    options = {"model.output": "y", "data.tasks": ["mnist"], "trainer.max_epochs": 2}
    assert given.overridden({"seed_everything": 5})["seed_everything"] == 5
    assert given.overridden(options) == {
        "seed_everything": 3,
        "model": {"class_path": "FineTune", "init_args": {"learning_rate": 0.1, "output": "y"}},
        "data": {"batch_size": 20, "tasks": ["mnist"]},
        "trainer": {"max_epochs": 2},
    }
    assert given.config == config  # what fingerprints are taken of


def test_a_section_may_be_in_a_file_beside_the_recipe(tmp_path):
    recipe(tmp_path, {"class_path": "FineTune"}, "model.yaml")
    given = recipe(tmp_path, {"model": "model.yaml"})
    assert given.overridden({"model.output": "x"})["model"] == {
        "class_path": "FineTune",
        "init_args": {"output": "x"},
    }


def test_it_runs_on_one_device(tmp_path):
    runs = []
    recipe(tmp_path, {"model": "FineTune", "trainer": {"devices": 1}}).run(runs.append, {})
    assert runs[0]["trainer"] == {n.split(".")[1]: v[0] for n, v in ON_ONE_DEVICE.items()}


@pytest.mark.parametrize("trainer", [{"devices": 2}, {"num_nodes": 2}, {"strategy": "ddp"}])
def test_a_recipe_for_several_devices_is_refused(tmp_path, trainer):
    name, value = next(iter(trainer.items()))
    given = recipe(tmp_path, {"trainer": trainer})
    with pytest.raises(
        InputError, match=rf"with trainer\.{name}={value!r} is a recipe for several"
    ):
        given.check_alone()


@pytest.mark.parametrize("trainer", [None, {"devices": "auto"}, {"devices": [0]}])
def test_a_recipe_for_any_device_is_taken(tmp_path, trainer):
    recipe(tmp_path, {"trainer": trainer}).check_alone()


def test_a_recipe_that_is_not_yaml_is_named(tmp_path):
    given = recipe(tmp_path, "model: [")
    with pytest.raises(InputError, match=r"zoo\.expert_recipe='.*recipe\.yaml' cannot be read"):
        given.section("model")
