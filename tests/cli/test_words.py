"""What of the command line is taken as it is."""

import json

import pytest
import yaml

from lightning_merge.cli.words import plain_words
from lightning_merge.core.errors import InputError


def option(words, name):
    """The value that YAML would read for an option."""
    (value,) = [words[i + 1] for i, word in enumerate(words) if word == f"--{name}"]
    return yaml.safe_load(value)


@pytest.mark.parametrize(
    "path",
    ["run: 1.pt", "{a: 1}", "[1, 2]", "null", "#1", "- x", "*x", "&x", "!x", "'q'", "é%", "1"],
)
@pytest.mark.parametrize("equals", [False, True])
def test_files_of_experts_are_not_parsed(path, equals):
    words = [f"--experts.a={path}"] if equals else ["--experts.a", path]
    assert option(plain_words(["merge", *words, "--experts.b c", "x"]), "experts")["a"] == path


def test_experts_of_a_config_stay_beside_those_given(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("experts: {a: old, b: kept}\n")
    words = plain_words(["merge", "--config", str(config), "--experts.a", "new: 1"])
    assert option(words, "experts") == {"a": "new: 1", "b": "kept"}


@pytest.mark.parametrize(
    ("given", "patterns"),
    [
        ("*x", ["*x"]),
        ("text.*", ["text.*"]),
        ("a, b", ["a, b"]),
        ("[*x]", ["*x"]),
        ("[*x, text.*]", ["*x", "text.*"]),
        ("""["*x", 'a, b', c]""", ["*x", "a, b", "c"]),
        ("[!x, &y, ?z, {w}]", ["!x", "&y", "?z", "{w}"]),
        ("[[ab].w, c]", ["[ab].w", "c"]),
        ("[]", []),
        ("[a,]", ["a"]),
    ],
)
def test_patterns_need_neither_a_list_nor_quotes(given, patterns):
    assert option(plain_words(["merge", "--ignore", given]), "ignore") == patterns
    assert option(plain_words(["merge", f"--ignore={given}"]), "ignore") == patterns


def test_patterns_are_added_or_replace():
    assert option(plain_words(["merge", "--ignore+", "*a", "--ignore+=[*b]"]), "ignore+") == [
        "*a",
        "*b",
    ]
    words = plain_words(["merge", "--ignore+", "*a", "--ignore", "*b", "--ignore+", "*c"])
    assert option(words, "ignore") == ["*b", "*c"]


@pytest.mark.parametrize(
    ("given", "kinds"),
    [("Dare", ["Dare"]), ("[Dare, LwPTV]", ["Dare", "LwPTV"]), ("[m.A]", ["m.A"])],
)
def test_transforms_by_their_names_alone(given, kinds):
    words = plain_words(["merge", "--method", "Ties", "--method.transforms", given])
    assert option(words, "method.transforms") == [{"class_path": kind} for kind in kinds]


@pytest.mark.parametrize(
    "words",
    [
        ["merge", "--method.scale=-1", "--overwrite", "true", "--print_config"],
        ["merge", "--method.transforms", "[{class_path: Dare, init_args: {drop: 0.5}}]"],
        ["merge", "--method.transforms", "[]"],
        ["merge", "-c", "x y.yaml", "--base", "a=b"],
    ],
)
def test_all_else_stays(words):
    assert plain_words(words) == words


def test_dashes_within_an_option_are_underscores():
    words = ["merge", "--max-shard-size", "5-GB", "--max-shard-size=5-GB"]
    assert plain_words(words) == ["merge", "--max_shard_size", "5-GB", "--max_shard_size=5-GB"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--experts.a", "x", "--experts.a", "y"], "--experts.a is given twice"),
        (
            ["--method.transforms", "LwPTV", "--method.transforms", "Dare"],
            "--method.transforms is given twice",
        ),
        (["--experts.a", "--base", "b"], "--experts.a has no value"),
        (["--ignore"], "--ignore has no value"),
    ],
)
def test_what_cannot_be_meant(words, message):
    with pytest.raises(InputError, match=message):
        plain_words(["merge", *words])


def test_json_of_all_that_was_given_is_read_by_yaml():
    words = plain_words(["merge", "--experts.my task", "a\tb\n\u2028é\\"])
    assert option(words, "experts") == json.loads(words[-1]) == {"my task": "a\tb\n\u2028é\\"}
