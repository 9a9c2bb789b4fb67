"""Loops that are shown: every step is told once, in whichever process it was done."""

from contextlib import contextmanager

import pytest

from lightning_merge.core import progress as shown
from lightning_merge.core.parallel import run_each


@pytest.fixture
def bars():
    """What bars have been told: name -> (total, steps)."""
    told = {}

    class Told(shown.Display):
        @contextmanager
        def loop(self, total, what, unit="", done=0):
            steps = []
            try:
                yield lambda number, items=0: steps.append(number)
            finally:
                told[what] = (total, sum(steps))

    with shown.shown_by(Told()):
        yield told


@pytest.mark.parametrize("jobs", [1, 2, 3])
@pytest.mark.parametrize("items", [1, 2, 7])
def test_work_in_processes_is_told_once(bars, jobs, items):
    assert run_each(lambda item: item, range(items), jobs, "counting") == [*range(items)]
    assert bars == {"counting": (items, items)}


def test_work_within_workers_is_not_shown(bars):
    run_each(lambda _: run_each(str, range(3), 1, "inner"), range(2), 2, "outer")
    assert bars["outer"] == (2, 2)
    assert bars.get("inner", (3, 3)) == (3, 3)  # of what this process did itself


def test_a_loop_that_breaks_off_is_left(bars):
    with pytest.raises(ZeroDivisionError):
        run_each(lambda item: 1 // item, [1, 0, 1], 1, "dividing")
    assert bars == {"dividing": (3, 1)}


def test_stages_of_teachers_say_so():
    told = []

    class Told(shown.Display):
        def stage(self, what):
            told.append(what)
            return super().stage(what)

        def skip(self, what, why):
            told.append((what, why))

    with shown.shown_by(Told()):
        with shown.stages_of("teachers'"):
            shown.skipped("base", "there already")
            with shown.stage("heads"):
                pass
        with shown.stage("base"):
            pass
    assert told == [("teachers' base", "there already"), "teachers' heads", "base"]
