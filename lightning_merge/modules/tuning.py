"""Search a space of hyperparameters; a search that was stopped goes on."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from lightning_merge.core.checkpoints.files import read_text, write_text
from lightning_merge.core.errors import InputError
from lightning_merge.core.seeding import generator_for
from lightning_merge.methods.base import Method
from lightning_merge.modules.space import Space

Sampler = Literal["tpe", "random"]


class Score(NamedTuple):
    """What the held-out images say of one merged network.

    Attributes:
        average: What is to be great: the mean accuracy over seen tasks, in [0, 1].
        accuracy: Fraction of right answers by task.
        seconds: Time that merging took.
    """

    average: float
    accuracy: Mapping[str, float]
    seconds: float


class Trial(NamedTuple):
    """One point of a space and its score; a reason in its place where there is none."""

    point: Mapping[str, Any]
    score: Score | None
    refused: str = ""

    @property
    def text(self) -> str:
        """Its hyperparameters, to be read."""
        return " ".join(
            f"{n}={v:.4g}" if isinstance(v, float) else f"{n}={v}" for n, v in self.point.items()
        )


class Search:
    """A search in a space, whose trials are kept in a file.

    The first trial is the method's own point where it lies in the space; then come all points,
    if there are no more of them than trials, or what the sampler suggests. A suggestion depends
    on the seed, the number of the trial and the trials before it alone. So the file, which is
    replaced as a whole after every trial, is all that it takes to go on after a kill as if there
    had been none; optuna's own storages may be left locked or torn by one.

    Args:
        space: Where to search.
        file: JSON of the finished trials; made if it is missing.
        trials: How many points to try in all.
        sampler: "tpe", the tree-structured Parzen estimator, or "random".
        seed: Of the sampler.

    Attributes:
        trials: The finished trials, in their order.
        total: How many there will be.

    Raises:
        InputError: The file is not one of trials.
    """

    def __init__(
        self, space: Space, file: Path, trials: int, sampler: Sampler = "tpe", seed: int = 0
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space, self.sampler, self.seed, self._file = space, sampler, seed, file
        self.trials = _read(file) if file.exists() else []
        grid = space.points(trials)
        if grid is None:
            self.total, self._left = trials, None
            del self.trials[trials:]
        else:  # whatever of it fewer trials have sampled
            tried = [trial.point for trial in self.trials]
            self._left = [point for point in grid if point not in tried]
            self.total = len(self.trials) + len(self._left)

    @property
    def best(self) -> Trial:
        """The first of the trials with the greatest average.

        Raises:
            InputError: No trial has a score.
        """
        scored = [trial for trial in self.trials if trial.score is not None]
        if not scored:
            raise InputError(f"space: no trial could be merged: {self.trials[0].refused}")
        return max(scored, key=lambda trial: cast(Score, trial.score).average)

    def run(self, score: Callable[[Method], Score], report: Callable[[Trial], None]) -> None:
        """Try what is not tried yet.

        Args:
            score: Merges by a method, and measures.
            report: Is given every trial when it has been kept.
        """
        if self.trials:
            self._write()  # there may be fewer than before
        for index in range(len(self.trials), self.total):
            self.trials.append(self._try(self._point(index), score))
            self._write()
            report(self.trials[-1])

    def _point(self, index: int) -> Mapping[str, Any]:
        """Return what to try next."""
        if self._left is not None:
            return self._left[index - self.total]
        given = self.space.given() if index == 0 else None
        if given is not None:
            return given
        study = optuna.create_study(direction="maximize", sampler=self._make_sampler(index))
        study.add_trials(map(self._known, self.trials))
        return study.ask(self.space.distributions).params

    def _make_sampler(self, index: int) -> BaseSampler:
        seed = generator_for(self.seed, "tune", str(index)).initial_seed() % 2**32
        if self.sampler == "random":
            return RandomSampler(seed=seed)
        return TPESampler(seed=seed, multivariate=True)

    def _known(self, trial: Trial) -> FrozenTrial:
        """Return a trial as optuna has it."""
        point, space = dict(trial.point), self.space.distributions
        if trial.score is None:
            return create_trial(params=point, distributions=space, state=TrialState.PRUNED)
        return create_trial(params=point, distributions=space, value=trial.score.average)

    def _try(self, point: Mapping[str, Any], score: Callable[[Method], Score]) -> Trial:
        """Score one point; where it was before, that score is taken."""
        if (again := next((t for t in self.trials if t.point == point), None)) is not None:
            return again
        try:
            method = self.space.method_at(point)
        except InputError as fault:
            return Trial(point, None, str(fault))
        return Trial(point, score(method))

    def _write(self) -> None:
        rows = [
            {**t._asdict(), "score": None if t.score is None else t.score._asdict()}
            for t in self.trials
        ]
        write_text(self._file, json.dumps(rows, indent=1))


def _read(file: Path) -> list[Trial]:
    try:
        rows = json.loads(read_text(file))
        return [
            Trial(row["point"], row["score"] and Score(**row["score"]), row["refused"])
            for row in rows
        ]
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise InputError(f"{file} does not hold trials ({fault}); remove it") from fault
