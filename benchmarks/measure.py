"""Measure the time and memory of a process, and the minimum time to move its bytes."""

import errno
import os
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

INTERVAL = 0.01  # seconds between two samples of a process's memory
BLOCK = 8 << 20  # bytes per system call of the floors
MIB = 1 << 20


@dataclass(frozen=True)
class Run:
    """The cost of one process.

    Attributes:
        wall: Seconds from start to end.
        cpu: Seconds of CPU time, user and system, over all threads and children.
        rss: Peak resident set in bytes, including mapped files (the kernel's own maximum).
        anonymous: Peak anonymous and shared memory in bytes, sampled every 10 ms.
        code: Exit code; if negative, the signal that ended it.
    """

    wall: float
    cpu: float
    rss: int
    anonymous: int
    code: int


@dataclass
class _Watch:
    """Samples the memory of a process and its children until told to stop."""

    pid: int
    limit: int
    rss: int = 0
    anonymous: int = 0
    done: threading.Event = field(default_factory=threading.Event)

    def follow(self) -> None:
        """Sample until done; kill all processes if they exceed the limit."""
        pause = INTERVAL
        while not self.done.wait(pause):
            started, tree = time.perf_counter(), _tree(self.pid)
            seen = [_memory(pid, alone=len(tree) == 1) for pid in tree]
            self.rss = max(self.rss, sum(rss for rss, _ in seen))
            self.anonymous = max(self.anonymous, sum(anonymous for _, anonymous in seen))
            if self.anonymous > self.limit:
                with suppress(ProcessLookupError):
                    os.killpg(self.pid, signal.SIGKILL)
            # sampling must not slow down the process
            pause = max(INTERVAL, 30 * (time.perf_counter() - started))


def run(command: list[str], *, log: Path, folder: Path, limit: int) -> Run:
    """Run a command to its end and return its cost.

    Thread counts are left at each library's default: variables like OMP_NUM_THREADS are removed.

    Args:
        command: Program and arguments.
        log: File for its output.
        folder: Working directory.
        limit: Bytes of anonymous memory above which the process is killed, so that it does not
            take the machine down.
    """
    hidden = ("OMP_", "MKL_", "OPENBLAS_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(hidden)}
    with log.open("wb") as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment | {"HF_HUB_OFFLINE": "1"},
            start_new_session=True,
        )
        watch = _Watch(process.pid, limit)
        watcher = threading.Thread(target=watch.follow)
        watcher.start()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
    watch.done.set()
    watcher.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    cpu = usage.ru_utime + usage.ru_stime
    return Run(wall, cpu, watch.rss, watch.anonymous, process.returncode)


def _tree(pid: int) -> list[int]:
    """Return a process and all its living descendants."""
    found = [pid]
    for parent in found:
        with suppress(OSError):
            for task in os.listdir(f"/proc/{parent}/task"):
                found += map(int, Path(f"/proc/{parent}/task/{task}/children").read_text().split())
    return found


def _memory(pid: int, alone: bool) -> tuple[int, int]:
    """Return peak resident bytes and current bytes not backed by files; zeros after its end.

    Pages shared by forked processes are divided between them. The kernel is slow to compute these
    shares, so they are skipped for a process that runs alone.
    """
    kind = "Rss" if alone else "Pss_"
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        if not alone:
            lines += Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return 0, 0
    kib = {
        key: int(rest.split()[0])
        for key, _, rest in (line.partition(":") for line in lines)
        if key in ("VmHWM", f"{kind}Anon", f"{kind}Shmem")
    }
    return 1024 * kib.get("VmHWM", 0), 1024 * sum(
        kib.get(f"{kind}{what}", 0) for what in ("Anon", "Shmem")
    )


def memory_available() -> int:
    """Return the bytes a new process can use without displacing another."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def read_seconds(files: list[Path], threads: int = 1) -> float:
    """Return the seconds to read all files once, with each thread reading a share of each."""
    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda part: _read(files, part, threads), range(threads)))
    return time.perf_counter() - started


def _read(files: list[Path], part: int, parts: int) -> None:
    block = memoryview(bytearray(BLOCK))
    for path in files:
        size = path.stat().st_size
        left = size * (part + 1) // parts - size * part // parts
        with path.open("rb", buffering=0) as file:
            file.seek(size * part // parts)
            while left:
                left -= file.readinto(block[: min(left, BLOCK)])


def write_seconds(path: Path, size: int) -> tuple[float, float]:
    """Return the seconds to write `size` bytes to a new file, and then to sync them to disk."""
    block = memoryview(os.urandom(BLOCK))
    started = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        left = size
        while left:
            left -= file.write(block[: min(left, BLOCK)])
        written = time.perf_counter()
        os.fsync(file.fileno())
        flushed = time.perf_counter()
    path.unlink()
    return written - started, flushed - written


def flush_all() -> None:
    """Flush pending writes, so that no run pays for those of the previous one."""
    os.sync()


def drop_cached(files: list[Path]) -> None:
    """Ask the kernel to drop the files' cached pages, so that the next read is from disk."""
    os.sync()
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cached_fraction(files: list[Path], samples: int = 256) -> float:
    """Estimate the fraction of the files' pages in memory, by non-blocking reads of some.

    Returns:
        A number in [0, 1]; nan if the file system does not support such reads.
    """
    try:
        hits = sum(_cached(path, samples) for path in files)
    except OSError as fault:
        if fault.errno != errno.EOPNOTSUPP:
            raise
        return float("nan")
    return hits / (samples * len(files))


def _cached(path: Path, samples: int) -> int:
    hits, byte, size = 0, bytearray(1), path.stat().st_size
    with path.open("rb", buffering=0) as file:
        for sample in range(samples):
            with suppress(BlockingIOError):
                at = size * sample // samples
                hits += os.preadv(file.fileno(), [byte], at, os.RWF_NOWAIT)
    return hits
