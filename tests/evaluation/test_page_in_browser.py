"""The page in a real browser: sorting, comparing, and what it loads."""

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path

import pytest

from evaluation.test_page import make_run
from lightning_merge.evaluation.page import page

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
WATCH = """<script>
const wrong = [];
addEventListener("error", (event) => wrong.push(event.message));
addEventListener("unhandledrejection", (event) => wrong.push(String(event.reason)));
addEventListener("securitypolicyviolation", (event) => wrong.push(event.blockedURI));
for (const kind of ["error", "warn"]) console[kind] = (...said) => wrong.push(said.join(" "));
</script>"""
PROBE = """<script>
const all = (what) => [...document.querySelectorAll(what)];
const column = (key) => all("#rows thead th").find((h) => h.innerText.trim().startsWith(key));
const names = () => all("#rows tbody tr").map((row) => row.dataset.row);
const differences = () => Object.fromEntries(all("#rows tbody tr").map(
  (row) => [row.dataset.row, row.querySelector("td[data-c=average]").innerText]));
const press = (key) => { column(key).querySelector("button").click();
  return [column(key).ariaSort, names()]; };
const found = { first: names(), before: differences() };
found.cars = [press("cars"), press("cars")];
found.named = press("candidate");
document.querySelector("tr[data-row=lwptv] .choose").click();
found.after = differences();
found.pressed = all(".choose[aria-pressed=true]").map((b) => b.closest("tr").dataset.row);
found.shown = document.querySelector(".mark.on").dataset.row;
const select = document.querySelector(".follow");
select.value = "lwptv"; select.dispatchEvent(new Event("change"));
found.followed = [...new Set(all(".mark.on[data-row]").map((mark) => mark.dataset.row))];
const back = () => getComputedStyle(document.body).backgroundColor;
found.light = back(); document.getElementById("theme").click(); found.dark = back();
found.hrefs = all("a.button").map((a) => a.href.slice(0, 5));
found.wide = [document.documentElement.scrollWidth, innerWidth];
found.region = (({ scrollWidth, clientWidth, tabIndex }) => [scrollWidth > clientWidth, tabIndex])(
  document.querySelector("#table .region"));
found.loaded = performance.getEntriesByType("resource").map((entry) => entry.name)
  .filter((name) => !name.startsWith("data:"));
found.unnamed = all("button, select, a, [role=img], [role=region]").filter((e) =>
  !(e.innerText || e.ariaLabel || (e.labels && e.labels.length))).map((e) => e.outerHTML);
found.ids = all("[id]").map((e) => e.id);
found.wrong = wrong;
const place = document.createElement("pre");
place.id = "own"; place.textContent = JSON.stringify(found); document.body.append(place);
</script>"""

FRAME = """<!doctype html><iframe style="width: {width}px; height: 900px" srcdoc="{text}"></iframe>
<script>addEventListener("load", () => {{
  const place = document.createElement("pre");
  place.id = "probe";
  const inside = document.querySelector("iframe").contentDocument;
  place.textContent = inside.getElementById("own").textContent;
  document.body.append(place);
}});</script>"""  # a window is never as narrow as a phone


AXE = """<script>axe.run().then((found) => {
  const place = document.createElement("pre");
  place.id = "probe";
  place.textContent = JSON.stringify(found.violations.map(
    (rule) => [rule.impact, rule.id, rule.nodes.map((node) => node.html)]));
  document.body.append(place);
});</script>"""


def probed(text, folder, *options):
    """What a script has left in an element of the page, once the browser is done."""
    if not CHROMIUM:
        pytest.skip("no Chromium: install it to test the page in a browser")
    (folder / "page.html").write_text(text)
    always = ["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", "--disable-extensions"]
    always += [f"--user-data-dir={folder / 'user'}", "--window-size=1600,900"]
    done = subprocess.run(
        [CHROMIUM, *always, *options, (folder / "page.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    probe = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
    assert probe, done.stderr
    return json.loads(unescape(probe[1]))


@pytest.fixture(scope="module")
def text():
    return page([make_run(seed) for seed in range(2)], against="ties")


@pytest.fixture(scope="module", params=[1440, 390])
def seen(request, text, tmp_path_factory):
    """What the browser found, at the width of a desktop and of a phone."""
    text = text.replace("<title>", f"{WATCH}<title>", 1).replace("</body>", f"{PROBE}</body>")
    framed = FRAME.format(width=request.param, text=escape(text))
    return probed(framed, tmp_path_factory.mktemp("page"))


def test_headings_sort(seen):
    total = {run: make_run(run).results.candidates for run in range(2)}

    def mean(name, of):
        return sum(of(rows[name]) for rows in total.values())

    names = [*total[0]]
    by_average = sorted(names, key=lambda n: -mean(n, lambda row: (
        row.accuracy["cars"] + row.accuracy["pets"])))  # fmt: skip
    by_cars = sorted(names, key=lambda n: -mean(n, lambda row: row.accuracy["cars"]))
    assert seen["first"] == by_average
    assert seen["cars"] == [["descending", by_cars], ["ascending", by_cars[::-1]]]
    assert seen["named"] == ["ascending", sorted(names)]


def test_one_click_changes_the_row_compared_with(seen):
    assert seen["pressed"] == ["lwptv"]
    assert seen["before"]["ties"] == seen["after"]["lwptv"] == ""
    before, after = (
        float(text.split()[0].replace("\u2212", "-"))
        for text in (seen["before"]["lwptv"], seen["after"]["ties"])
    )
    assert before == -after != 0
    assert "[" in seen["after"]["ties"]
    assert " p" in seen["after"]["ties"].replace("\n", " ")


def test_charts_follow_the_chosen_row(seen):
    assert seen["shown"] != "lwptv"
    assert seen["followed"] == ["lwptv"]


def test_nothing_fails_and_nothing_is_loaded(seen):
    assert seen["wrong"] == []
    assert seen["loaded"] == []
    assert seen["hrefs"] == ["blob:", "blob:"]


def test_the_page_fits_and_the_table_scrolls(seen):
    width, window = seen["wide"]
    assert width <= window
    assert seen["region"] == [True, 0]  # reached by the keyboard


def test_both_themes_differ_and_everything_has_a_name(seen):
    assert seen["light"] != seen["dark"]
    assert seen["unnamed"] == []
    assert len(seen["ids"]) == len(set(seen["ids"]))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_no_violation(text, tmp_path, theme):
    axe = pytest.importorskip("axe_core_python", reason="pip install axe-core-python")
    rules = (Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    text = text.replace("<html", f'<html data-theme="{theme}"')
    text = text.replace("</body>", f"<script>{rules}</script>{AXE}</body>")
    assert probed(text, tmp_path, "--virtual-time-budget=30000") == []
