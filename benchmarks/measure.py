"""What a process costs in time and memory, and what moving its bytes costs at the least."""

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

INTERVAL = 0.01  # seconds between two looks at a process's memory
BLOCK = 8 << 20  # bytes per system call of the floors
MIB = 1 << 20


@dataclass(frozen=True)
class Run:
    """One whole process.

    Attributes:
        wall: Seconds from its start to its end.
        cpu: Seconds of CPU time, user and system, all threads and children.
        rss: Peak resident set in bytes, mapped files included (the kernel's own maximum).
        anonymous: Peak anonymous and shared memory in bytes, seen every 10 ms.
        code: Exit code; negative, the signal that ended it.
    """

    wall: float
    cpu: float
    rss: int
    anonymous: int
    code: int


@dataclass
class _Watch:
    """Follow the memory of a process and its children until told to stop."""

    pid: int
    limit: int
    rss: int = 0
    anonymous: int = 0
    done: threading.Event = field(default_factory=threading.Event)

    def follow(self) -> None:
        """Look until done; end all processes if they take more than the limit."""
        pause = INTERVAL
        while not self.done.wait(pause):
            started, tree = time.perf_counter(), _tree(self.pid)
            seen = [_memory(pid, alone=len(tree) == 1) for pid in tree]
            self.rss = max(self.rss, sum(rss for rss, _ in seen))
            self.anonymous = max(self.anonymous, sum(anonymous for _, anonymous in seen))
            if self.anonymous > self.limit:
                with suppress(ProcessLookupError):
                    os.killpg(self.pid, signal.SIGKILL)
            # looking must not slow down what is looked at
            pause = max(INTERVAL, 30 * (time.perf_counter() - started))


def run(command: list[str], *, log: Path, folder: Path, limit: int) -> Run:
    """Run a command to its end and say what it cost.

    Threads are left at each library's default: variables like OMP_NUM_THREADS are taken out.

    Args:
        command: Program and arguments.
        log: File for what it prints.
        folder: Folder it runs in.
        limit: Bytes of anonymous memory above which it is killed, so that a process that is
            too large does not take the machine with it.
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
    """A process and all below it that live now."""
    found = [pid]
    for parent in found:
        with suppress(OSError):
            for task in os.listdir(f"/proc/{parent}/task"):
                found += map(int, Path(f"/proc/{parent}/task/{task}/children").read_text().split())
    return found


def _memory(pid: int, alone: bool) -> tuple[int, int]:
    """Peak resident bytes so far, and bytes now that no file backs; zeros for one that ended.

    Of pages that forked processes share, each counts its part; the kernel takes long to say so,
    and is not asked about a process that is alone.
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
    """Bytes that a new process can have without another being pushed out."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def read_seconds(files: list[Path], threads: int = 1) -> float:
    """Seconds to read all bytes of the files once, each thread its share of every file."""
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
    """Seconds to write `size` bytes to a new file, and to force them onto the disk after."""
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
    """Have everything written that waits to be, so that no run pays for the one before it."""
    os.sync()


def drop_cached(files: list[Path]) -> None:
    """Ask the kernel to forget the files' pages, so that the next reading is from the disk."""
    os.sync()
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cached_fraction(files: list[Path], samples: int = 256) -> float:
    """Which part of the files' pages is in memory, by asking for some without waiting for them.

    Returns:
        A number in [0, 1]; nan where the file system cannot be asked that way.
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
