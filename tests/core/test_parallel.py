"""Work in several processes against the same in one."""

import os
import signal
import time

import pytest
import torch

from lightning_merge.core.errors import InputError
from lightning_merge.core.parallel import run_each


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_results_are_in_order_and_every_item_is_done_once(jobs, tmp_path):
    def work(item):
        (tmp_path / str(item)).touch(exist_ok=False)
        time.sleep(0.001 * (item % 3))
        return item, os.getpid(), torch.get_num_threads(), torch.is_grad_enabled()

    threads = torch.get_num_threads()
    results = run_each(work, range(40), jobs)
    assert [item for item, *_ in results] == [*range(40)]
    assert 1 <= len({pid for _, pid, *_ in results}) <= jobs
    assert {rest for _, _, *rest in results for rest in [tuple(rest)]} == {(1, False)}
    assert len(list(tmp_path.iterdir())) == 40
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()


def test_workers_share_the_work():
    def work(item):
        time.sleep(0.05)
        return torch.full((3,), float(item)), os.getpid()

    results = run_each(work, range(10), 2)
    assert [row.tolist() for row, _ in results] == [[float(i)] * 3 for i in range(10)]
    assert len({pid for _, pid in results}) == 2


def test_nothing_to_do():
    assert run_each(str, [], 3) == []


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_an_error_ends_the_others(jobs):
    def work(item):
        if item == 5:
            raise InputError("five")
        time.sleep(0.01)

    started = time.monotonic()
    with pytest.raises(InputError, match="five"):
        run_each(work, range(1000), jobs)
    assert time.monotonic() - started < 5
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)  # no child is left


def test_a_killed_worker_is_an_error():
    parent = os.getpid()

    def work(item):
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.05)

    with pytest.raises(InputError, match="worker was killed"):
        run_each(work, range(20), 2)


def test_a_worker_has_no_workers():
    pids = run_each(lambda _: set(run_each(lambda _: os.getpid(), range(4), 4)), range(4), 2)
    assert all(len(inner) == 1 for inner in pids)
