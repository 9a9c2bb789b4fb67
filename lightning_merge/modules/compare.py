"""Measure every candidate of a run and write one table."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info

from lightning_merge.core.files import atomic_write
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
    images is taken; test images are looked at once per candidate, after all choices.

    Args:
        trainer: runs the evaluation; any number of devices.
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
    trainer.strategy.barrier()  # rank zero has written the weights
    trainer.loggers = []  # metrics.csv is about the training
    if trainer.progress_bar_callback is not None:
        trainer.progress_bar_callback.disable()  # one line per candidate says enough
    chosen = {
        name: _choose(trainer, evaluate, data, candidate) if candidate.options else candidate
        for name, candidate in candidates.items()
    }
    rows = {name: _measure(trainer, evaluate, data, c) for name, c in chosen.items()}
    results = Results(
        tasks=data.tasks,
        candidates=rows,
        seed=seed,
        versions=versions(str(trainer.strategy.root_device)),
        command=command,
        notes=notes,
    )
    if trainer.is_global_zero:
        results.to_json(folder / "results.json")
        with atomic_write(folder / "results.md") as temporary:
            temporary.write_text(markdown(results))
    return results


def _choose(
    trainer: Trainer, evaluate: Evaluate, data: MergeDataModule, candidate: Candidate
) -> Candidate:
    assert candidate.options is not None
    assert isinstance(candidate.weights, Path)
    scores = {}
    for what, path in candidate.options.items():
        evaluate.show(replace(candidate, weights=path))
        trainer.validate(evaluate, datamodule=data, verbose=False)
        scores[what] = evaluate.measured["val"].average
    best = max(scores, key=scores.__getitem__)
    trainer.strategy.barrier()
    if trainer.is_global_zero:
        shutil.move(candidate.options[best], candidate.weights)
        for what, path in candidate.options.items():
            if what != best:
                path.unlink()
    trainer.strategy.barrier()
    note = f"{best} of {len(scores)} chosen on the held-out images"
    rank_zero_info(f"{candidate.name}: {note}")
    return replace(candidate, note="; ".join(filter(None, [candidate.note, note])), options=None)


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
