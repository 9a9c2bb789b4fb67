"""Several processes of one test, forked from it: the libraries are loaded once."""

import multiprocessing
import os
import pickle
import socket
import sys
import traceback

import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only

PATIENCE = 120  # seconds until a process counts as hanging


def forked(size, work, folder):
    """What work(rank, port) has returned, or its traceback, in each of some processes.

    None of one that ended by itself. The port is free, for them to meet at.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answers = [folder / f"answer{rank}" for rank in range(size)]
    fork = multiprocessing.get_context("fork")
    processes = [
        fork.Process(target=_answer, args=(answer, work, rank, port))
        for rank, answer in enumerate(answers)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
        if process.is_alive():
            process.kill()
            pytest.fail("a process hangs")
    found = [pickle.loads(a.read_bytes()) if a.exists() else None for a in answers]
    for answer in answers:
        answer.unlink(missing_ok=True)
    return found


def as_torchrun(work, size):
    """The work of a process as torchrun would have it; an exit is its result."""

    def run(rank, port):
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
        names |= {"GROUP_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        names |= {"TORCHELASTIC_RUN_ID": "test", "GLOO_SOCKET_IFNAME": "lo"}
        names |= {"OMP_NUM_THREADS": 1}  # else Lightning takes all cores, whose threads are gone
        os.environ.update({name: str(value) for name, value in names.items()})
        rank_zero_only.rank = rank
        try:
            return work(rank)
        except SystemExit as stop:
            return stop.code

    return run


def _answer(answer, work, rank, port):
    torch.set_num_threads(1)  # the parent's other threads are not here, and never answer
    try:
        found = work(rank, port)
    except BaseException:
        found = traceback.format_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    answer.write_bytes(pickle.dumps(found))
