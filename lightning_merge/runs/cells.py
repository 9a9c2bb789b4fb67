"""Cells of a grid, run in processes of their own."""

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Event
from typing import NamedTuple

from lightning_merge.core.checkpoints.files import locked
from lightning_merge.core.errors import InputError

_RUNNING: set[subprocess.Popen[bytes]] = set()


class Work(NamedTuple):
    """The command of one cell.

    Attributes:
        folder: Run folder, which names the cell.
        log: File for what it prints.
        arguments: Words of the command line behind ``python -m lightning_merge``.

    Examples:
        >>> Work("runs/a", "runs/a.log", ("list",)).arguments
        ('list',)
    """

    folder: str
    log: str
    arguments: tuple[str, ...]


def run(work: Work, stopped: Event | None = None) -> str:
    """Run a cell; return why it failed, or "".

    One that an earlier call has left running, as its process was killed, is waited for.

    Args:
        work: The command.
        stopped: Nothing begins once it is set.

    Examples:
        >>> run(Work("cell", "cell.log", ("sort",)))
        "unknown command 'sort'..."
    """
    command = [sys.executable, "-m", "lightning_merge", *work.arguments]
    with locked(work.folder) as lock, open(work.log, "w", encoding="utf-8") as log:
        if stopped is not None and stopped.is_set():
            return "stopped"
        process = subprocess.Popen(command, stdout=log, stderr=log, pass_fds=(lock,))
        _RUNNING.add(process)
        if stopped is not None and stopped.is_set():
            process.terminate()
        code = process.wait()
        _RUNNING.discard(process)
    return why(code, work.log)


def why(code: int, log: str) -> str:
    r"""Return why a cell failed, "" if it did not.

    Args:
        code: Its exit code.
        log: File of what it printed.

    Examples:
        >>> _ = Path("cell.log").write_text("begun\nerror: no such file\n")
        >>> why(2, "cell.log"), why(0, "cell.log")
        ('no such file', '')
    """
    if code == 0:
        return ""
    lines = Path(log).read_text(encoding="utf-8", errors="replace").splitlines()
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    last = next((line for line in reversed(lines) if line.strip()), "it printed nothing")
    return told[-1] if told else f"ended with code {code}: {last.strip()}"


def run_here(todo: Sequence[Work], jobs: int) -> Iterator[tuple[Work, str]]:
    """Run cells on this machine, and yield each with why it failed as it ends.

    Args:
        todo: The cells.
        jobs: Processes at a time.

    Examples:
        >>> [reason for _, reason in run_here([Work("cell", "cell.log", ("sort",))], jobs=1)]
        ["unknown command 'sort'..."]
    """
    stopped = Event()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            yield from _ended({pool.submit(run, work, stopped): work for work in todo})
        except BaseException:  # Ctrl-C among others: nothing goes on behind the user's back
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for process in [*_RUNNING]:
                process.terminate()
            raise


def run_on_cluster(todo: Sequence[Work], address: str) -> Iterator[tuple[Work, str]]:
    """Run cells on the workers of a dask.distributed scheduler, which share this folder.

    A cell whose worker dies runs on another one, up to three times. Cells that run when this
    process is stopped go on to their end.

    Args:
        todo: The cells.
        address: The scheduler's, as in tcp://host:8786.

    Raises:
        InputError: The package distributed is not installed, or nothing answers there.

    Examples:
        >>> run_on_cluster([], "tcp://host:8786")  # connects once it is iterated over
        <generator object run_on_cluster at ...>
    """
    try:
        from distributed import Client
        from distributed import as_completed as ended
    except ImportError:
        raise InputError(
            f'cluster={address!r} needs distributed: pip install "lightning-merge[cluster]"'
        ) from None
    try:
        client = Client(address, timeout=5)
    except (OSError, ValueError) as fault:
        raise InputError(f"cluster={address!r}: no scheduler answers there ({fault})") from None
    with client:
        futures = {client.submit(run, work, retries=3, pure=False): work for work in todo}
        for future in ended(list(futures)):
            died = future.exception()
            yield futures[future], future.result() if died is None else str(died)


def _ended(futures: Mapping[Future[str], Work]) -> Iterator[tuple[Work, str]]:
    """Yield cells as they end."""
    for future in as_completed(futures):
        yield futures[future], future.result()
