"""The page against the aggregate and the evidence that it shows."""

import json
import re
from html.parser import HTMLParser

import pytest
import torch

from lightning_merge.core.errors import InputError
from lightning_merge.core.facts import shown_to
from lightning_merge.evaluation import CandidateResult, Results, aggregate
from lightning_merge.evaluation.correctness import Correctness
from lightning_merge.evaluation.evidence import weigh
from lightning_merge.evaluation.page import Run, leaks, page
from lightning_merge.evaluation.page.render import LIMIT
from lightning_merge.evaluation.page.seen import badges
from lightning_merge.methods import MTies, Surgery, Ties

TASKS = ("cars", "pets", "food")
EVIL = "<script>alert('x')</script> & co"
RATES = {"base": 0.5, "individual": 0.9, "ties": 0.7, EVIL: 0.72, "lwptv": 0.6, "seen": 0.8}
NOTES = {
    "ties": "scale=0.3 of 2 chosen on the held-out examples; Ties(scale=0.3)",
    "lwptv": "Ties(transforms=[LwPTV()])",
}


def make_run(seed, record=None, images=120, **more):
    """A run whose answers are drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    right = {
        name: {t: torch.rand((1, images), generator=generator) < rate for t in TASKS}
        for name, rate in RATES.items()
    }
    rows = {
        name: CandidateResult(
            name,
            {t: float(bits.double().mean()) for t, bits in cells.items()},
            dict.fromkeys(TASKS, images),
            seconds=1.5 + seed + len(name),
            note=NOTES.get(name, ""),
            bound=name in ("base", "individual"),
            transductive=name == "seen",
            peak_memory=2**20 * (seed + 1),
            **more.get(name, {}),
        )
        for name, cells in right.items()
    }
    results = Results(TASKS, rows, seed, {"torch": "2.6.0"}, "do --it", out_of_domain=("food",))
    splits = {"tasks": {t: {"test": {"digest": f"test {t}"}} for t in TASKS} | (record or {})}
    correct = Correctness({t: f"test-{t}" for t in TASKS}, right)
    return Run(f"seed{seed}", results, correct, splits)


class Reader(HTMLParser):
    """Elements of a page, and the cells of its table."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.rows, self.headings, self.texts = [], {}, [], {}
        self._cell = self._row = self._tag = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.elements.append((tag, given))
        self._tag = tag
        if tag == "tr" and "data-row" in given:
            self._row = self.rows[given["data-row"]] = []
        if tag == "td" and self._row is not None:
            self._cell = {**given, "text": ""}
            self._row.append(self._cell)
        if tag == "button" and "title" in given:
            self.headings.append("")

    def handle_endtag(self, tag):
        if tag == "td":
            self._cell = None
        if tag == "table":
            self._row = None
        self._tag = None

    def handle_data(self, data):
        if self._cell is not None:
            self._cell["text"] += data
        elif self._tag == "button" and self.headings and self.headings[-1] == "":
            self.headings[-1] = data
        if self._tag in ("script", "h1", "title"):
            self.texts.setdefault(self._tag, []).append(data)

    def cells(self, name):
        """Cell of each column by its heading, without differences."""
        found = [cell for cell in self.rows[name] if "data-v" in cell]
        return dict(zip(self.headings, found, strict=True))

    @property
    def data(self):
        return json.loads(self.texts["script"][0])


@pytest.fixture(scope="module")
def runs():
    return [make_run(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def text(runs):
    return page(runs)


@pytest.fixture(scope="module")
def found(text):
    return Reader(text)


def test_cells_are_those_of_the_aggregate(runs, found):
    total = aggregate([r.results for r in runs])
    evidence = weigh([r.results for r in runs], [r.right for r in runs])
    assert set(found.rows) == set(total.candidates)
    for name, row in total.candidates.items():
        cells = found.cells(name)
        for column, value in {**row.accuracy, **row.averages, **row.figures}.items():
            cell = cells[column]
            assert float(cell["data-v"]) == pytest.approx(100 * value.mean)
            assert f"{100 * value.mean:.1f} ± {100 * value.std:.1f}" in cell["text"]
            low, high = (100 * end for end in evidence.intervals[name][column])
            assert f"[{low:.1f}, {high:.1f}]" in cell["text"]
            assert ("tie" in cell["class"].split()) == (column in evidence.best[name])
        if not row.bound:
            assert float(cells["seconds"]["data-v"]) == pytest.approx(row.seconds.mean)
            assert float(cells["peak MiB"]["data-v"]) == pytest.approx(2)
        above = row.accuracy["cars"].mean - total.candidates["individual"].accuracy["cars"].mean
        shown = f"{100 * above:+.1f}".replace("-", "\u2212")
        assert (f"{shown} against its expert" in cells["cars"]["text"]) == (name != "individual")
        assert "against its expert" not in cells["food"]["text"]  # out of domain


def test_heat_covers_the_range_of_every_column(found):
    for column in ("average", "cars", "seconds"):
        heats = {
            name: float(cell["style"].removeprefix("--h:"))
            for name in found.rows
            if "style" in (cell := found.cells(name)[column])
        }
        assert (min(heats.values()), max(heats.values())) == (0, 1)
        values = {name: float(found.cells(name)[column]["data-v"]) for name in heats}
        top = min(values, key=values.get) if column == "seconds" else max(values, key=values.get)
        assert heats[top] == 1


@pytest.mark.parametrize("against", RATES)
def test_pairs_are_the_differences_of_the_aggregate(runs, found, against):
    results, right = [r.results for r in runs], [r.right for r in runs]
    rows = aggregate(results, against, right).candidates
    data = found.data
    pairs = data["pairs"][data["rows"].index(against)]
    assert pairs[data["rows"].index(against)] is None
    assert data["compared"] == ["average", "average out of domain", "H-score"]
    for name in set(RATES) - {against}:
        own = dict(zip(data["compared"], pairs[data["rows"].index(name)], strict=True))
        for column, (points, low, high, p, verdict) in own.items():
            difference = rows[name].differences[column]
            interval, p_value = difference.compared
            assert points == pytest.approx(100 * difference.spread.mean, abs=0.006)
            assert [low, high] == pytest.approx([100 * end for end in interval], abs=0.006)
            assert p == pytest.approx(p_value, rel=0.05)
            assert verdict == {"better": 1, "worse": -1, "": 0}[difference.compared.verdict]


def test_results_can_be_taken_away(runs, found, tmp_path):
    for run, content in zip(runs, found.data["results"], strict=True):
        (tmp_path / "results.json").write_text(json.dumps(content))
        assert Results.from_json(tmp_path / "results.json") == run.results
    lines = found.data["csv"].splitlines()
    assert lines[0] == "candidate,column,mean,std,low,high"
    total = aggregate([run.results for run in runs]).candidates["ties"].average
    (line,) = (line for line in lines if line.startswith("ties,average,"))
    assert float(line.split(",")[2]) == total.mean


def test_the_page_stands_alone(text, found):
    assert len(text.encode()) < LIMIT
    for tag, given in found.elements:
        assert tag not in ("iframe", "object", "embed", "base")
        assert tag != "link" or given["href"] == "data:,"
        for name in ("src", "href", "xlink:href", "action", "poster"):
            assert str(given.get(name, "#")).startswith(("#", "data:")), (tag, given)
    assert not re.search(r"@import|url\((?!#)", text)
    scripts = [given for tag, given in found.elements if tag == "script"]
    assert [given.get("type") for given in scripts] == ["application/json", None]


def test_names_are_text_and_not_markup(found):
    assert EVIL in found.rows
    assert EVIL in found.data["rows"]


def test_charts_have_words(found):
    images = [given for tag, given in found.elements if given.get("role") == "img"]
    assert len(images) == len(TASKS) + 2  # a line each, two clouds
    assert all(given["aria-label"] for given in images)
    arrows = [given for _, given in found.elements if given.get("class") == "arrow"]
    assert len(arrows) == 1  # from ties to lwptv


def test_the_best_is_neither_reference_nor_transductive(runs, found):
    means = {n: r.average.mean for n, r in aggregate([r.results for r in runs]).candidates.items()}
    best = max(("ties", EVIL, "lwptv"), key=means.get)
    assert means["seen"] > means[best]
    assert found.texts["title"][0].startswith(f"{best}: report of")
    assert f"{best} has the highest average" in found.texts["h1"][0]


def test_badges_come_from_facts_and_notes():
    def texts(note="", **more):
        row = CandidateResult("x", {"a": 0.5}, {"a": 8}, 1.0, note=note, **more)
        return [b.text for b in badges(aggregate([Results(("a",), {"x": row}, 0, {})])
                                       .candidates["x"])]  # fmt: skip

    assert texts("Ties()", seen=shown_to(Ties())) == ["data-free"]
    assert texts(seen=shown_to(MTies()), searched={"scale=1": 0.5}) == [
        "unlabelled", "chosen on held-out"
    ]  # fmt: skip
    assert texts(seen=shown_to(Surgery())) == ["unlabelled", "told the task"]
    assert texts(seen=("labelled",)) == ["labelled"]
    assert texts(seen=("unlabelled",), transductive=True) == ["transductive"]
    assert texts() == ["not recorded"]  # an older run
    assert texts("MTies(scale=0.5); sees 9 unlabelled held-out images") == ["unlabelled"]
    assert texts("Mine(transforms=[LwPTV()])") == ["not recorded"]
    assert texts("EMR(); is told the task of every image") == ["data-free", "told the task"]


def test_search_and_learning_are_drawn():
    searched = {"scale=0.1": 0.4, "scale=0.2": 0.6, "scale=0.4": 0.5}
    run = make_run(0, ties={"searched": searched})
    run = Run(run.name, run.results, run.right, run.splits,
              metrics="step,train/loss\n0,2.5\n1,\n2,1.25\n")  # fmt: skip
    labels = [g["aria-label"] for _, g in Reader(page([run])).elements if g.get("role") == "img"]
    assert any("3 values of scale" in label and "0.2 with 60.0" in label for label in labels)
    assert "Training loss by step: seed 0 from 2.5 to 1.25" in labels


def test_numbers_that_are_not_finite_are_left_out_of_charts():
    searched = {"tall=0.5": 0.4, "tall=1.0": 0.6, "tall=inf": 0.5}
    run = make_run(0, ties={"searched": searched})
    losses = "step,train/loss\n0,2.5\n1,inf\n2,nan\n" + "".join(f"{i},1\n" for i in range(3, 700))
    run = Run(run.name, run.results, run.right, run.splits, metrics=f"{losses}700,0.25\n")
    labels = [g["aria-label"] for _, g in Reader(page([run])).elements if g.get("role") == "img"]
    assert any("2 values of tall" in label for label in labels)
    assert "Training loss by step: seed 0 from 2.5 to 0.25" in labels


def leaky(part):
    """A run whose test examples of pets are a part of cars."""
    return make_run(0, {"cars": {part: {"digest": "test-pets"}}})


@pytest.mark.parametrize("part", ["train", "validation", "coefficients"])
def test_leaks_are_refused_or_marked(part):
    with pytest.raises(
        InputError, match=rf"test examples of pets, as cars \({part}\).*rows .*ties"
    ):
        page([leaky(part)])
    marked = page([leaky(part)], allow_leak=True)
    rows = {g["data-row"]: g["class"] for t, g in Reader(marked).elements if t == "tr" and g}
    tainted = {name for name, classes in rows.items() if "leak" in classes.split()}
    assert tainted == set(RATES) - (set() if part == "train" else {"base", "individual"})
    assert "<b>Leak.</b> seed0: " in marked


def test_parts_of_their_own_do_not_leak():
    record = {"cars": {"train": {"digest": "a"}, "validation": {"digest": "b"}}}
    assert leaks([make_run(0, record)]) == []


def test_runs_of_other_images_are_named(runs):
    other = make_run(4)
    digests = {**other.right.digests, "pets": "others"}
    other = Run("mine", other.results, Correctness(digests, other.right.right))
    with pytest.raises(InputError, match="mine was measured on other test examples of pets than"):
        page([runs[0], other])


def test_results_alone_make_a_page(runs):
    alone = page([Run("copy", run.results) for run in runs])
    assert "<b>No intervals.</b>" in alone
    data = Reader(alone).data
    assert all(len(cell) == 1 for row in data["pairs"][0][1:] for cell in row)


def test_pictures_that_do_not_fit_are_named(runs, tmp_path):
    from PIL import Image

    noise = torch.randint(0, 256, (1400, 1400, 3), generator=torch.Generator().manual_seed(0))
    files = [tmp_path / "coefficients.png", tmp_path / "features_ties.png"]
    Image.new("RGB", (3000, 60), "white").save(files[0])
    Image.fromarray(noise.byte().numpy()).save(files[1])
    run = runs[0]
    text = page([Run("mine", run.results, run.right, figures=files)])
    (image,) = (given for tag, given in Reader(text).elements if tag == "img")
    assert (image["width"], image["alt"]) == ("1400", "Figure coefficients of mine")
    assert "features_ties.png of mine" in text
    assert len(text.encode()) < LIMIT
