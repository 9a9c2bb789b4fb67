"""Several config files: later mappings complete earlier ones, later lists replace them."""

from dataclasses import dataclass, field

import pytest
import yaml

from lightning_merge.cli.parser import Parser
from lightning_merge.methods import LwPTV, TaskArithmetic, Ties
from lightning_merge.methods.base import MergeMethod


@dataclass
class Row:
    """A class with options that a config may leave out."""

    method: MergeMethod = field(default_factory=TaskArithmetic)
    grid: dict[str, list[float]] | None = None
    name: str = ""


@pytest.fixture
def parse(tmp_path):
    """Function that parses contents of configs, the first one first."""

    def parse(*contents):
        parser = Parser(exit_on_error=False)
        parser.add_argument("--config", action="config")
        parser.add_argument("--rows", type=list[Row])
        parser.add_subclass_arguments(MergeMethod, "method")
        words = []
        for number, content in enumerate(contents):
            file = tmp_path / f"{number}.yaml"
            file.write_text(yaml.safe_dump(content))
            words += ["--config", str(file)]
        return parser.instantiate_classes(parser.parse_args(words))

    return parse


def test_items_of_a_list_of_the_same_length_are_the_later_ones_alone(parse):
    ties = {"class_path": "Ties", "init_args": {"density": 0.5}}
    first = {"rows": [{"name": "a", "method": ties, "grid": {"scale": [1.0]}}], "method": ties}
    (row,) = parse(first, {"rows": [{"name": "b"}]}).rows
    assert (row.name, row.grid, type(row.method)) == ("b", None, TaskArithmetic)
    (row,) = parse(first, {"rows": [{"name": "b", "method": {"class_path": "Ties"}}]}).rows
    assert (row.grid, row.method.density) == (None, Ties().density)


def test_lists_within_the_options_of_a_class_are_replaced_too(parse):
    def behind(ratio):
        pruned = {"class_path": "LwPTV", "init_args": {"prune_ratio": ratio}}
        return {"method": {"class_path": "Ties", "init_args": {"transforms": [pruned]}}}

    plain = {"method": {"init_args": {"transforms": [{"class_path": "LwPTV"}]}}}
    assert parse(behind(0.5), plain).method.transforms == [LwPTV()]


def test_mappings_complete_each_other(parse):
    first = {"method": {"class_path": "Ties", "init_args": {"density": 0.5, "scale": 2.0}}}
    method = parse(first, {"method": {"init_args": {"scale": 3.0}}}).method
    assert (method.density, method.scale) == (0.5, 3.0)
