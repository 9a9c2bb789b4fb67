"""Measure every candidate of a run and write one table."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.utilities import rank_zero_info

from lightning_merge.core.files import atomic_write
from lightning_merge.core.ranks import Ranks
from lightning_merge.data.datamodule import MergeDataModule
from lightning_merge.evaluation.candidates import Candidate
from lightning_merge.evaluation.results import CandidateResult, Results, versions
from lightning_merge.evaluation.tables import markdown
from lightning_merge.modules.evaluate import Evaluate


def compare(
    trainer: Trainer,
    evaluate: Evaluate,
    data: MergeDataModule,
    candidates: Mapping[str, Candidate],
    folder: Path,
    *,
    seed: int,
    command: str = "",
    notes: Sequence[str] = (),
) -> Results:
    """Test every candidate; write results.json and results.md.

    Where a candidate has options, the one with the best average accuracy on the held-out
    images is taken; test images are looked at once per candidate, after all choices. The
    accuracies do not depend on the number of processes.

    Args:
        trainer: runs the evaluation; any number of devices. It loses its loggers and its bar.
        evaluate: encoder and heads.
        data: the tasks.
        candidates: name -> what to measure.
        folder: run folder.
        seed: of the run, for the record.
        command: that made the run, for the record.
        notes: sentences under the table.

    Returns:
        The accuracies.
    """
    trainer.loggers = []  # metrics.csv is about the training
    others = [c for c in trainer.callbacks if not isinstance(c, ProgressBar)]  # type: ignore[attr-defined]
    trainer.callbacks = others  # type: ignore[attr-defined]  # one line per candidate says enough
    chosen = {
        name: _choose(trainer, evaluate, data, candidate) if candidate.options else candidate
        for name, candidate in candidates.items()
    }
    rows = {name: _measure(trainer, evaluate, data, c) for name, c in chosen.items()}
    results = Results(
        tasks=data.tasks,
        candidates=rows,
        seed=seed,
        versions=versions(str(trainer.strategy.root_device)) | _processes(trainer),
        command=command,
        notes=notes,
    )
    Ranks.of(trainer).once(lambda: _write(results, folder))
    return results


def _write(results: Results, folder: Path) -> None:
    results.to_json(folder / "results.json")
    with atomic_write(folder / "results.md") as temporary:
        temporary.write_text(markdown(results))


def _processes(trainer: Trainer) -> dict[str, str]:
    return {"processes": str(trainer.world_size)} if trainer.world_size > 1 else {}


def _choose(
    trainer: Trainer, evaluate: Evaluate, data: MergeDataModule, candidate: Candidate
) -> Candidate:
    assert candidate.options is not None
    scores = {}
    for what, option in candidate.options.items():
        evaluate.show(option)
        trainer.validate(evaluate, datamodule=data, verbose=False)
        scores[what] = evaluate.measured["val"].average
    best = max(scores, key=scores.__getitem__)
    Ranks.of(trainer).once(lambda: _keep(candidate, best))
    note = f"{best} of {len(scores)} chosen on the held-out images"
    rank_zero_info(f"{candidate.name}: {note}")
    return replace(
        candidate,
        seconds=candidate.options[best].seconds,
        note="; ".join(filter(None, [candidate.note, note])),
        options=None,
    )


def _keep(candidate: Candidate, best: str) -> None:
    """Let the best option's file take the candidate's name, and remove the others."""
    assert candidate.options is not None
    for what, option in candidate.options.items():
        assert isinstance(option.weights, Path)
        assert isinstance(candidate.weights, Path)
        if what == best:
            shutil.move(option.weights, candidate.weights)
        else:
            option.weights.unlink()


def _measure(
    trainer: Trainer, evaluate: Evaluate, data: MergeDataModule, candidate: Candidate
) -> CandidateResult:
    evaluate.show(candidate)
    trainer.test(evaluate, datamodule=data, verbose=False)
    found = evaluate.measured["test"]
    rank_zero_info(f"{candidate.name}: {100 * found.average:.1f} % on the test images")
    return CandidateResult(
        name=candidate.name,
        accuracy=found.accuracy,
        samples=found.samples,
        seconds=candidate.seconds,
        note=candidate.note,
        bound=candidate.bound,
    )
