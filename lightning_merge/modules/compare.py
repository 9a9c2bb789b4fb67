"""Comparison of all candidates of a run in one table."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.profilers import PassThroughProfiler
from torch import Tensor

from lightning_merge.core.checkpoints.files import write_text
from lightning_merge.core.checkpoints.names import enumerate_names
from lightning_merge.core.errors import warn
from lightning_merge.core.progress import Advance, detail, progress, stage, tracked
from lightning_merge.core.ranks import Ranks
from lightning_merge.data.datamodule import MergeDataModule
from lightning_merge.evaluation.candidates import BASE, EXPERTS, Candidate
from lightning_merge.evaluation.correctness import Correctness
from lightning_merge.evaluation.evidence import with_intervals
from lightning_merge.evaluation.results import CandidateResult, Results, versions
from lightning_merge.evaluation.tables import markdown
from lightning_merge.modules.bar import Bar
from lightning_merge.modules.base import limit
from lightning_merge.modules.comparability import comparability
from lightning_merge.modules.evaluate import Evaluate
from lightning_merge.modules.held_out import HeldOut
from lightning_merge.modules.measured import Measured
from lightning_merge.modules.references import References, Row
from lightning_merge.modules.storage import update_bytes

RECALIBRATION_WARNING = 2.0
"""Loss of the base, in percentage points, above which recalibration deserves a warning.

The loss is rather too small, as the statistics are those of some of the images it is measured on.
"""
CHOOSING, MEASURING = "choosing", "measuring"
"""The stages of a comparison."""
TRIAL = "A trial run of a few batches (trainer.fast_dev_run), not a measurement."
FIRST = (
    "; they are the first of each split, often of a few classes, so intervals, p values and bold "
    "hold for them alone"
)


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
    recalibrated: HeldOut | None = None,
    references: References | None = None,
) -> Results:
    """Test every candidate; write correct.safetensors, results.json and results.md.

    Of a candidate with options, the option with the best average accuracy on the held-out examples
    of the seen tasks is chosen; test examples are used once per candidate, after all choices. A
    candidate with weights per task, as the individual experts, has the mean accuracy of all seen
    tasks' weights on every data set out of domain. Files of options are kept until everything is
    measured, so that a stopped run can be resumed. The accuracies do not depend on the number of
    processes.

    Args:
        trainer: Trainer that runs the evaluation, on any number of devices. Its loggers, profiler
            and progress bar are removed.
        evaluate: Encoder and heads.
        data: The tasks.
        candidates: Candidates by name.
        folder: Run folder.
        seed: Seed of the run, for the record.
        command: Command that made the run, for the record.
        notes: Sentences under the table.
        recalibrated: Images that gave merged networks their BatchNorm statistics; what that does to
            the base, which `evaluate` starts with, is measured on all held-out images, these
            included.
        references: Rows of references that earlier runs have measured.

    Returns:
        The accuracies, with intervals.

    Examples:
        >>> import torch
        >>> from PIL import Image
        >>> from lightning_merge.core.checkpoints.checkpoint import save_checkpoint
        >>> from lightning_merge.models import MiniViT, class_mean_head, save_heads
        >>> for i in range(16):
        ...     file = Path("pets", ("train", "test")[i % 2], ("cat", "dog")[i // 8], f"{i}.png")
        ...     file.parent.mkdir(parents=True, exist_ok=True)
        ...     Image.new("RGB", (8, 8), (i, 0, 0)).save(file)
        >>> encoder = MiniViT(depth=1)
        >>> base = save_checkpoint(encoder.backbone.state_dict(), Path("base.safetensors"))
        >>> head = class_mean_head(torch.eye(2, 192), torch.arange(2), 2, classes=["cat", "dog"])
        >>> heads = save_heads({"pets": head}, "heads.safetensors")
        >>> evaluate = Evaluate(encoder, "heads.safetensors", "base.safetensors")
        >>> trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
        >>> data = MergeDataModule(".", tasks=["pets"])
        >>> rows = {"weights": evaluate.candidate}
        >>> results = compare(trainer, evaluate, data, rows, Path(), seed=0)
        >>> results.candidates["weights"].samples
        {'pets': 8}
    """
    known = comparability(evaluate.heads_files, data.evaluated, candidates.get(EXPERTS))
    few = [*_learned_from(trainer)]
    trial = [TRIAL] if trainer.fast_dev_run else []  # type: ignore[attr-defined]
    _measure_only(trainer)
    effect = _recalibration_note(trainer, evaluate, data, recalibrated)
    chosen = _choose_all(trainer, evaluate, data, candidates)
    rows, right = _measure_all(trainer, evaluate, data, chosen, references)
    Ranks.of(trainer).once(lambda: _keep(candidates, chosen))
    results = Results(
        tasks=data.evaluated,
        candidates=rows,
        seed=seed,
        versions=versions(str(trainer.strategy.root_device)) | _processes(trainer),
        command=command,
        notes=(
            *(*notes, *known, *data.kept.notes, *effect),
            *(trial or [*few, *_measured_on(trainer, evaluate.measured)]),
        ),
        unseen=data.unseen,
        out_of_domain=data.out_of_domain,
        own_split=data.own_split,
        corruption=data.kept.corrupted,
    )
    correct = Correctness(_digests(data), right)
    return Ranks.of(trainer).once(lambda: _write(results, correct, folder))


def _measure_only(trainer: Trainer) -> None:
    """Take away what belongs to training, and show one bar for each candidate."""
    trainer.loggers = []  # metrics.csv is about the training
    trainer.profiler = PassThroughProfiler()  # type: ignore[attr-defined]  # so is a profile
    # Lightning's bar would leave one line per task and candidate.
    trainer.callbacks = [  # type: ignore[attr-defined]
        Bar() if isinstance(c, ProgressBar) else c
        for c in trainer.callbacks  # type: ignore[attr-defined]
    ]


def _recalibration_note(
    trainer: Trainer, evaluate: Evaluate, data: MergeDataModule, held_out: HeldOut | None
) -> list[str]:
    """Return what other BatchNorm statistics, if any, do to the base; warn if they harm it."""
    if held_out is None:
        return []
    base, accuracy = evaluate.candidate, []
    for recalibrate in (None, held_out.recalibrate):
        evaluate.show(base, recalibrate)
        trainer.validate(evaluate, datamodule=data, verbose=False)
        accuracy.append(100 * evaluate.measured["val"].mean(data.seen))
    del evaluate.measured["val"]  # nothing was chosen by it
    own, other = accuracy
    note = (
        f"The base has {own:.1f} % on the held-out images, and {other:.1f} % with BatchNorm "
        "statistics recalibrated on some of these."
    )
    if own - other > RECALIBRATION_WARNING:
        warn(f"{note} They may harm merged networks as much; try batch_norm: average")
    else:
        detail(note)
    return [note]


def _write(results: Results, correctness: Correctness, folder: Path) -> Results:
    results = with_intervals(results, correctness)
    correctness.write(folder)
    results.to_json(folder / "results.json")
    write_text(folder / "results.md", markdown(results))
    return results


def _learned_from(trainer: Trainer) -> Iterator[str]:
    """Yield a note if epochs of learning were cut short."""
    loaders: Any = trainer.train_dataloader  # measuring forgets them
    batches = max(map(len, loaders.values())) if loaders else 0
    if trainer.num_training_batches < batches:
        seen = f"{trainer.num_training_batches} of {batches} batches"
        yield f"{limit(trainer, 'train')}: an epoch of learning was {seen}."


def _measured_on(trainer: Trainer, measured: Mapping[str, Measured]) -> Iterator[str]:
    """Yield a note for every part whose accuracies do not cover all images."""
    kinds = {"val": ("choices on held-out examples", ""), "test": ("accuracies", FIRST)}
    for part, (what, more) in kinds.items():
        if part in measured and (shares := measured[part].shares):
            yield f"{limit(trainer, part)}: {what} cover only {shares}{more}."


def _processes(trainer: Trainer) -> dict[str, str]:
    return {"processes": str(trainer.world_size)} if trainer.world_size > 1 else {}


def _choose_all(
    trainer: Trainer, evaluate: Evaluate, data: MergeDataModule, candidates: Mapping[str, Candidate]
) -> dict[str, Candidate]:
    """Return the candidates, each of those with options as the best of them."""
    options = [option for c in candidates.values() for option in c.options or ()]
    if not options:
        return {**candidates}
    with stage(CHOOSING) as say, progress(len(options), "network") as advance:
        say(f"{len(options)} networks on held-out examples")
        return {
            name: _choose(trainer, evaluate, data, candidate, advance)
            if candidate.options
            else candidate
            for name, candidate in candidates.items()
        }


def _choose(
    trainer: Trainer,
    evaluate: Evaluate,
    data: MergeDataModule,
    candidate: Candidate,
    advance: Advance,
) -> Candidate:
    assert candidate.options is not None
    scores = {}
    for what, option in candidate.options.items():
        evaluate.show(option)
        trainer.validate(evaluate, datamodule=data, verbose=False)
        scores[what] = evaluate.measured["val"].mean(data.seen)
        advance(1)
    best = max(scores, key=scores.__getitem__)
    note = f"{best} of {len(scores)} chosen on the held-out examples"
    if data.unseen:
        note += " of the seen tasks"
    detail(f"{candidate.name}: {note}")
    option = candidate.options[best]
    note = "; ".join(filter(None, [note, candidate.note, option.note]))
    return replace(
        option,
        name=candidate.name,
        note=note,
        bound=candidate.bound,
        transductive=candidate.transductive or option.transductive,
        searched=scores,
    )


def _digests(data: MergeDataModule) -> dict[str, str]:
    """Return what identifies the images that every data set was measured on."""
    return {
        name: f"{data.record[name]['test']['digest']} {data.kept.corrupted}".strip()
        for name in data.evaluated
    }


def _keep(candidates: Mapping[str, Candidate], chosen: Mapping[str, Candidate]) -> None:
    """Rename files of the chosen options to their candidates' files, and remove the others."""
    for name, candidate in candidates.items():
        for option in (candidate.options or {}).values():
            for file, place in _files(option, candidate):
                if option.weights == chosen[name].weights:
                    shutil.move(file, place)
                else:
                    file.unlink()


def _files(option: Candidate, candidate: Candidate) -> Iterator[tuple[Path, Path]]:
    """Yield every existing file of an option with the candidate's file that it becomes."""
    for kind in ("weights", "figure"):
        file, place = getattr(option, kind), getattr(candidate, kind)
        if file is not None and file.exists():
            yield file, place


def _measure_all(
    trainer: Trainer,
    evaluate: Evaluate,
    data: MergeDataModule,
    chosen: Mapping[str, Candidate],
    references: References | None,
) -> tuple[dict[str, CandidateResult], dict[str, dict[str, Tensor]]]:
    """Test every candidate; return its row, and which images it classified correctly."""
    rows, right, base = {}, {}, chosen.get(BASE)
    with stage(MEASURING) as say:
        for name, candidate in tracked([*chosen.items()], "network"):
            row, right[name] = _known(trainer, evaluate, data, candidate, references)
            rows[name] = replace(row, update_bytes=update_bytes(candidate, base, evaluate.encoder))
        say(f"{len(rows)} networks")
    return rows, right


def _known(
    trainer: Trainer,
    evaluate: Evaluate,
    data: MergeDataModule,
    candidate: Candidate,
    references: References | None,
) -> Row:
    """Test a candidate, or take the row of a reference that an earlier run has measured."""
    if references is None:
        return _measure(trainer, evaluate, data, candidate)
    if (key := references.key(trainer, evaluate.encoder, data, candidate)) is None:
        return _measure(trainer, evaluate, data, candidate)
    ranks = Ranks.of(trainer)
    if (known := ranks.once(lambda: references.read(key))) is not None:
        detail(f"{candidate.name}: measured by an earlier run")
        return known
    row = _measure(trainer, evaluate, data, candidate)
    ranks.once(lambda: references.write(key, row, data))
    return row


def _measure(
    trainer: Trainer, evaluate: Evaluate, data: MergeDataModule, candidate: Candidate
) -> Row:
    if isinstance(candidate.weights, Path) or not data.out_of_domain:
        measured, note = _test(trainer, evaluate, data, candidate), ""
    else:
        measured, note = _test_each(trainer, evaluate, data, candidate)
    averages = measured.averages(data.tasks, data.out_of_domain).items()
    found = ", ".join(f"{name} {100 * value:.1f} %" for name, value in averages)
    detail(f"{candidate.name}: {found} on the test examples")
    row = CandidateResult(
        name=candidate.name,
        accuracy=measured.accuracy,
        samples=measured.samples,
        joint=measured.joint or None,
        distance=measured.distance or None,
        beside=measured.beside or None,
        **asdict(candidate.cost),
        note="; ".join(filter(None, [candidate.note, note])),
        bound=candidate.bound,
        transductive=candidate.transductive,
        seen=candidate.seen,
        searched=candidate.searched,
    )
    return row, measured.right


def _test(
    trainer: Trainer, evaluate: Evaluate, data: MergeDataModule, candidate: Candidate
) -> Measured:
    evaluate.show(candidate)
    trainer.test(evaluate, datamodule=data, verbose=False)
    return evaluate.measured["test"]


@contextmanager
def _covering(data: MergeDataModule, tasks: tuple[str, ...]) -> Iterator[None]:
    """Let passes over test examples cover some tasks only."""
    before, data.evaluated = data.evaluated, tasks
    try:
        yield
    finally:
        data.evaluated = before


def _test_each(
    trainer: Trainer, evaluate: Evaluate, data: MergeDataModule, candidate: Candidate
) -> tuple[Measured, str]:
    """Test weights per task on their own tasks, and all those of seen tasks out of domain."""
    with _covering(data, data.tasks):
        own = _test(trainer, evaluate, data, candidate)
    with _covering(data, data.out_of_domain):
        apart = {
            task: _test(trainer, evaluate, data, replace(candidate, weights=candidate.file(task)))
            for task in data.seen
        }
    evaluate.measured["test"] = measured = own.joined(Measured.mean_of([*apart.values()]))
    ranked = sorted((100 * found.average, task) for task, found in apart.items())
    experts = enumerate_names([f"{value:.1f} {task}" for value, task in ranked], len(ranked))
    return measured, f"out of domain, the mean of the seen tasks' networks: {experts}"
