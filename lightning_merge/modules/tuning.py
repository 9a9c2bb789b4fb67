"""Search of a space of hyperparameters that can be resumed."""

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
    """Accuracy of one merged network on the held-out images.

    Attributes:
        average: Mean accuracy over seen tasks, in [0, 1]; the search maximises it.
        accuracy: Fraction of right predictions by task.
        seconds: Time that merging took.

    Examples:
        >>> Score(0.75, {"cars": 0.5, "pets": 1.0}, seconds=2.0).average
        0.75
    """

    average: float
    accuracy: Mapping[str, float]
    seconds: float


class Trial(NamedTuple):
    """One point of a space, with its score or the reason why it has none.

    Attributes:
        point: Name of a hyperparameter -> number, or text of a choice.
        score: Score of the merged network; None if the method refused the point.
        refused: Why the method refused the point.

    Examples:
        >>> Trial({"scale": 1 / 3, "steps": 5}, score=None, refused="steps is too large").text
        'scale=0.3333 steps=5'
    """

    point: Mapping[str, Any]
    score: Score | None
    refused: str = ""

    @property
    def text(self) -> str:
        """The hyperparameters as text."""
        return " ".join(
            f"{n}={v:.4g}" if isinstance(v, float) else f"{n}={v}" for n, v in self.point.items()
        )


class Search:
    """A search in a space that keeps its trials in a file.

    If the space has at most as many points as trials, all are tried. Otherwise the first trial is
    the method's own point, if it lies in the space, and the sampler suggests the others. A
    suggestion depends only on the seed, the number of the trial and the earlier trials. So the
    file, which is replaced as a whole after every trial, is enough to resume a killed search as if
    it had not stopped; a kill may leave optuna's own storages locked or torn.

    Args:
        space: Space to search.
        file: JSON of the finished trials; made if it is missing.
        trials: Number of points to try in all.
        sampler: "tpe", the tree-structured Parzen estimator, or "random".
        seed: Seed of the sampler.

    Attributes:
        trials: Finished trials, in their order.
        total: Number of trials at the end.

    Raises:
        InputError: The file does not hold trials.

    Examples:
        >>> from lightning_merge.methods import TaskArithmetic
        >>> from lightning_merge.modules.space import Range
        >>> space = Space(TaskArithmetic(), {"scale": Range(choices=[0.2, 0.6, 0.4])})
        >>> search = Search(space, Path("trials.json"), trials=3)
        >>> search.run(lambda method: Score(method.scale, {}, 0.0), report=lambda trial: None)
        >>> search.best.text
        'scale=0.6'
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
        else:  # except points that a search with fewer trials has sampled
            tried = [trial.point for trial in self.trials]
            self._left = [point for point in grid if point not in tried]
            self.total = len(self.trials) + len(self._left)

    @property
    def best(self) -> Trial:
        """First trial with the greatest average.

        Raises:
            InputError: No trial has a score.
        """
        scored = [trial for trial in self.trials if trial.score is not None]
        if not scored:
            raise InputError(
                f"space has no point that the method accepts: {self.trials[0].refused}"
            )
        return max(scored, key=lambda trial: cast(Score, trial.score).average)

    def run(self, score: Callable[[Method], Score], report: Callable[[Trial], None]) -> None:
        """Run the trials that are left.

        Args:
            score: Merges with a method and evaluates the result.
            report: Called with every trial after it was written.
        """
        if self.trials:
            self._write()  # fewer trials may be asked for than the file has
        for index in range(len(self.trials), self.total):
            self.trials.append(self._try(self._point(index), score))
            self._write()
            report(self.trials[-1])

    def _point(self, index: int) -> Mapping[str, Any]:
        """Return the point to try next."""
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
        """Convert a trial to optuna's type."""
        point, space = dict(trial.point), self.space.distributions
        if trial.score is None:
            return create_trial(params=point, distributions=space, state=TrialState.PRUNED)
        return create_trial(params=point, distributions=space, value=trial.score.average)

    def _try(self, point: Mapping[str, Any], score: Callable[[Method], Score]) -> Trial:
        """Score one point, or return its earlier trial."""
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
