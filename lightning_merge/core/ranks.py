"""Coordination of the processes of one run: work done once, and agreement on errors."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

from torch import distributed

from lightning_merge.core.errors import InputError

Result = TypeVar("Result")

PATIENCE = timedelta(days=30)
"""How long processes wait for one that trains or merges; torch's default is 30 minutes."""


class AgreedError(InputError):
    """Bad input that every process of the run knows about, so that only one has to tell the user.

    Examples:
        >>> isinstance(AgreedError("tasks: mnist is given twice"), InputError)
        True
    """


class Ranks(NamedTuple):
    """The processes of one run; a single process needs no process group.

    Attributes:
        rank: Number of this process.
        size: Number of processes.

    Examples:
        >>> Ranks().once(lambda: "done"), Ranks().gather(7)
        ('done', [7])
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def of(cls, trainer: Any) -> "Ranks":
        """Return the processes of a Lightning trainer; a single one if there is no trainer."""
        if trainer is None or trainer.world_size == 1:
            return cls()
        return cls(trainer.global_rank, trainer.world_size)

    def once(self, work: Callable[[], Result]) -> Result:
        """Run `work` in process zero while the others wait, and return its result in all of them.

        Raises:
            AgreedError: Process zero found bad input.
            SystemExit: In the other processes, if process zero failed in another way.
        """
        if self.size == 1:
            return work()
        fault: BaseException | None = None
        outcome: list[Any] = [None, None]
        if self.rank == 0:
            try:
                outcome = [work(), None]
            except (Exception, SystemExit) as error:
                fault, known = error, isinstance(error, InputError)
                outcome = [None, str(error) if known else SystemExit(1)]
        distributed.broadcast_object_list(outcome, 0, group=_patient())
        result, failure = outcome
        if isinstance(failure, str):
            raise AgreedError(failure) from fault
        if failure is not None:
            raise fault or failure
        return result

    def gather(self, value: Result) -> list[Result]:
        """Return the values of all processes, in order, in each of them."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value, group=_patient())
        return values

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """Make all processes fail if one finds bad input in the block, which all of them run.

        Blocks may be nested.

        Raises:
            AgreedError: With the message of the first process that found bad input.
        """
        if self.size == 1:
            yield
            return
        fault: InputError | None = None
        try:
            yield
        except AgreedError:
            raise
        except InputError as error:
            fault = error
        messages = self.gather(None if fault is None else str(fault))
        for rank, message in enumerate(messages):
            if message is not None:
                where = "" if all(messages) else f"process {rank} of {self.size}: "
                raise AgreedError(where + message) from fault


ALONE = Ranks()


def _patient() -> Any:
    """Return a group of all processes whose collectives wait as long as the work may take."""
    return _group_beside(distributed.group.WORLD)


@lru_cache(maxsize=1)
def _group_beside(world: Any) -> Any:
    """Create the group when it is first needed, which is at the same point in all processes."""
    return distributed.new_group(backend="gloo", timeout=PATIENCE)
