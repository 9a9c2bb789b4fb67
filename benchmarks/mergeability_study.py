"""Test whether M-Loss predicts the accuracy lost by merging two experts of a suite.

    python benchmarks/mergeability_study.py --data-root DATA
    python benchmarks/mergeability_study.py --data-root DATA --sizes 16 128 1024 --seeds 0 1 2

Every pair of experts is merged and measured on the test images of its two tasks. Predictors of the
lost accuracy see only weights and unlabelled held-out images; nothing is chosen on test images.
M-Loss is compared with predictors that need no images.

Pairs that share an expert are not independent, so significance is assessed by permuting experts: p
is the share of random permutations of the experts under which a rank correlation is at least as far
from 0 (Mantel 1967), and the interval is a bootstrap over experts.

With --sizes it measures instead how much M-Loss and the ranks of its nodes depend on the images.
"""

import argparse
import json
import shlex
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import report
import torch
from lightning.pytorch.cli import LightningCLI
from torch import Tensor, nn

from lightning_merge.core.checkpoints.files import write_text
from lightning_merge.core.networks.mergeability import LayerInputs, Mergeability, mergeability
from lightning_merge.core.vectors.task_vectors import TaskVectors
from lightning_merge.data.datamodule import MergeDataModule
from lightning_merge.methods import Average, TaskArithmetic
from lightning_merge.methods.base import MergeMethod
from lightning_merge.models import Encoder, Head
from lightning_merge.modules import TaskModule
from lightning_merge.modules.heads import fitting_heads
from lightning_merge.modules.inference import outputs

METHODS: dict[str, MergeMethod] = {
    "average": Average(),
    "task arithmetic, 0.3": TaskArithmetic(scale=0.3),
}
Matrix = np.ndarray
"""A number for every pair of experts, [K, K], symmetric."""


@dataclass(frozen=True)
class Suite:
    """The experts and data of the study.

    Attributes:
        base: Pretrained weights.
        experts: Fine-tuned weights by task.
        encoder: Network that the weights belong to.
        heads: Heads by task.
        data: The tasks' images, loaded.
    """

    base: Mapping[str, Tensor]
    experts: Mapping[str, Mapping[str, Tensor]]
    encoder: Encoder
    heads: Mapping[str, Head]
    data: MergeDataModule

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """The positions of the two experts of every pair."""
        return list(combinations(range(len(self.experts)), 2))

    def matrix(self, value: Callable[[str, str], float]) -> Matrix:
        """Return a number for every pair of tasks."""
        tasks, found = list(self.experts), np.zeros((len(self.experts), len(self.experts)))
        for i, j in self.pairs:
            found[i, j] = found[j, i] = value(tasks[i], tasks[j])
        return found

    def accuracy(self, weights: Mapping[str, Tensor], task: str) -> float:
        """Return the accuracy of some weights on a task's test images, in percent."""
        self.encoder.load(weights)
        images, right = self.data.inputs(task, "test"), 0
        network = nn.Sequential(self.encoder, self.heads[task])
        batches = images.batches(self.data.eval_batch_size, f"measuring {task}")
        device = next(self.encoder.parameters()).device
        for batch, logits in outputs(network, self.encoder.preprocess, batches, device):
            right += int((logits.argmax(1) == batch.labels.to(device)).sum())
        return 100 * right / len(images)

    def lost(self, method: MergeMethod, individual: Mapping[str, float]) -> Matrix:
        """Return the mean accuracy over its two tasks that merging each pair costs, in points."""

        def of_pair(first: str, second: str) -> float:
            print(f"{type(method).__name__}: {first} and {second}", file=sys.stderr)
            merged = method(self.base, {task: self.experts[task] for task in (first, second)})
            losses = [individual[task] - self.accuracy(merged, task) for task in (first, second)]
            return sum(losses) / 2

        return self.matrix(of_pair)

    def m_loss(
        self, tasks: Sequence[str], layer_inputs: LayerInputs = "merged", seed: int = 0
    ) -> Mergeability:
        """Return the M-Loss of some experts on a draw of unlabelled images of their tasks."""
        normalize, images = self.encoder.preprocess.finish, self.data.unlabelled_by_task(seed)
        return mergeability(
            self.base,
            {task: self.experts[task] for task in tasks},
            self.encoder.backbone,
            torch.cat([normalize(images[task]) for task in tasks]),
            layer_inputs,
        )


def predictors(suite: Suite) -> dict[str, Matrix]:
    """Return all predictors of the lost accuracy; larger values predict a larger loss."""
    together = suite.m_loss(list(suite.experts))
    alone = {pair: suite.m_loss(pair) for pair in combinations(suite.experts, 2)}
    deltas = TaskVectors(suite.base, suite.experts)
    vectors = torch.cat([deltas[name].flatten(1) for name in deltas.names], 1).double()
    lengths = vectors.norm(dim=1)
    raw = torch.stack([layer.pairwise for layer in together.layers.values()]).mean(0)
    return {
        "M-Loss, one pass for all pairs": together.pairwise.numpy(),
        "M-Loss, not normalised": raw.numpy(),
        "M-Loss, a pass per pair on its tasks": suite.matrix(lambda i, j: alone[i, j].overall),
        "distance of the weights": torch.cdist(vectors, vectors).numpy(),
        "- cosine of the task vectors": -(vectors @ vectors.T / lengths.outer(lengths)).numpy(),
        "length of both task vectors": (lengths[:, None] + lengths).numpy(),
    }


def ranks(values: Matrix) -> Matrix:
    """Return ranks from 0; equal values share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[inverse]


def spearman(x: Matrix, y: Matrix) -> float:
    """Return Spearman's rank correlation of two vectors; NaN if one is constant."""
    a, b = (ranks(values) - (len(values) - 1) / 2 for values in (x, y))
    size = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / size) if size else float("nan")


def kendall(x: Matrix, y: Matrix) -> float:
    """Return Kendall's tau-b of two vectors; NaN if one is constant."""
    a, b = (np.sign(values[:, None] - values) for values in (x, y))
    size = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / size) if size else float("nan")


def partial_spearman(x: Matrix, y: Matrix, z: Matrix) -> float:
    """Return the partial rank correlation of x and y, controlling for z."""
    xy, xz, yz = spearman(x, y), spearman(x, z), spearman(y, z)
    size = np.sqrt((1 - xz**2) * (1 - yz**2))
    return (xy - xz * yz) / size if size > 1e-9 else float("nan")


def upper(matrix: Matrix, experts: Sequence[int] | None = None) -> Matrix:
    """Return the values of all pairs of distinct experts; of all experts by default."""
    chosen = range(len(matrix)) if experts is None else experts
    return np.array([matrix[i, j] for i, j in combinations(chosen, 2) if i != j])


def chance(x: Matrix, y: Matrix, statistic: Callable[[Matrix, Matrix], float], draws: int) -> float:
    """Return the two-sided p of a correlation of two matrices, by permutations of the experts."""
    generator = np.random.default_rng(0)
    found, other = abs(statistic(upper(x), upper(y))), upper(y)
    renamed = (generator.permutation(len(x)) for _ in range(draws))
    if np.isnan(found):
        return float("nan")
    reached = sum(abs(statistic(upper(x, order), other)) >= found - 1e-12 for order in renamed)
    return (1 + reached) / (1 + draws)


def interval(
    x: Matrix, y: Matrix, statistic: Callable[[Matrix, Matrix], float], draws: int
) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a correlation, resampling experts."""
    generator = np.random.default_rng(0)
    chosen = [generator.integers(len(x), size=len(x)) for _ in range(draws)]
    values = [statistic(upper(x, experts), upper(y, experts)) for experts in chosen]
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def interaction(matrix: Matrix) -> Matrix:
    """Return the residual of m_ij after the best fit a_i + a_j: the effect of the pair alone."""
    count, rows = len(matrix), (matrix - np.diag(np.diag(matrix))).sum(1)
    own = (rows - rows.sum() / (2 * (count - 1))) / (count - 2)
    left = matrix - own[:, None] - own
    return np.where(abs(upper(left)).max() > 1e-9 * abs(matrix).max(), left, 0)  # or rounding error


HEADER = (
    *("predictor", "Spearman", "95 %", "p", "Kendall", "p"),
    *("given the distance", "of interactions", "p"),
)


def rows(found: Mapping[str, Matrix], lost: Matrix, draws: int) -> list[list[str]]:
    """Return one row per predictor: its rank correlations with the lost accuracy.

    The last three are Spearman's: controlling for the distance of the weights, and of the effects
    of pairs alone, since some experts lose more than others whatever they are merged with.
    """
    lines = []
    distance = upper(found["distance of the weights"])
    for name, values in found.items():
        low, high = interval(values, lost, spearman, draws)
        line = [name, _cell(spearman(upper(values), upper(lost))), f"{low:+.2f} to {high:+.2f}"]
        line += [_cell(chance(values, lost, spearman, draws), ".3f")]
        line += [_cell(kendall(upper(values), upper(lost)))]
        line += [_cell(chance(values, lost, kendall, draws), ".3f")]
        given = partial_spearman(upper(values), upper(lost), distance)
        pair, of_pair = interaction(values), interaction(lost)
        line += [_cell(given), _cell(spearman(upper(pair), upper(of_pair)))]
        lines.append([*line, _cell(chance(pair, of_pair, spearman, draws), ".3f")])
    return lines


def _cell(value: float, form: str = "+.2f") -> str:
    return "" if np.isnan(value) else format(value, form)


def sentence(method: str, found: Mapping[str, Matrix], lost: Matrix, draws: int) -> str:
    """Return a sentence on how well M-Loss, the first predictor, does for one merge method."""
    name, values = next(iter(found.items()))
    correlation = spearman(upper(values), upper(lost))
    p = chance(values, lost, spearman, draws)
    others = {n: spearman(upper(v), upper(lost)) for n, v in found.items() if "M-Loss" not in n}
    best = max(others, key=others.__getitem__)
    known = "is told apart from chance" if p < 0.05 else "is not told apart from chance"
    low, high = interval(values, lost, spearman, draws)
    return (
        f"{method}: pairs lose {upper(lost).mean():.1f} points on average "
        f"({upper(lost).min():.1f} to {upper(lost).max():.1f}); {name}, ranks them with Spearman's "
        f"{correlation:+.2f} ({low:+.2f} to {high:+.2f}), which {known} (p = {p:.3f}); the best "
        f"control, {best}, with {others[best]:+.2f}."
    )


def stability(suite: Suite, sizes: Sequence[int], seeds: Sequence[int]) -> list[list[str]]:
    """Return one row per number of images: M-Loss of all experts, and how alike nodes are ranked.

    Ranks are compared, by Spearman's correlation and layer by layer, with those on another draw of
    as many images as the largest number, and with those on every other draw of the same number.

    Args:
        suite: The experts and data; `data.unlabelled_inputs` changes.
        sizes: Numbers of images, of all tasks together.
        seeds: Seeds of the draws.
    """

    def draw(size: int, seed: int) -> Mergeability:
        suite.data.unlabelled_inputs = size
        return suite.m_loss(list(suite.experts), seed=seed)

    def alike(one: Mergeability, other: Mergeability) -> list[float]:
        nodes = [[layer.all.node.numpy() for layer in m.layers.values()] for m in (one, other)]
        return [spearman(x, y) for x, y in zip(*nodes, strict=True)]

    reference, lines = draw(max(sizes), max(seeds) + 1), []
    for size in sizes:
        draws = [draw(size, seed) for seed in seeds]
        overall = [found.overall for found in draws]
        far = [value for found in draws for value in alike(found, reference)]
        near = [value for pair in combinations(draws, 2) for value in alike(*pair)]
        spread = f"{np.mean(overall):.4f} ± {np.std(overall, ddof=1):.4f}"
        cells = (f"{np.nanmean(part):.3f} ({np.nanmin(part):.3f})" for part in (far, near))
        lines.append([str(size), spread, *cells])
    return lines


STABILITY = (
    *("images", "M-Loss of all experts"),
    *("ranks, with another draw of the most images (least of a layer)", "with each other"),
)


def open_suite(given: argparse.Namespace) -> Suite:
    """Open all files that a suite's config names, and load all images."""
    words = ["--config", given.config, "--data.root", given.data_root, *given.options]
    warnings.filterwarnings("ignore", "LightningCLI's args parameter is intended")
    cli = LightningCLI(
        TaskModule,
        MergeDataModule,
        args=[*words, "--data.unlabelled_inputs", str(given.unlabelled), "--trainer.logger=false"],
        subclass_mode_model=True,
        auto_configure_optimizers=False,
        save_config_callback=None,
        seed_everything_default=0,
        run=False,
    )
    encoder, zoo, data = cli.model.encoder, cli.model.zoo, cli.datamodule
    data.preprocess = encoder.preprocess
    data.load()
    base, experts = zoo.open(encoder, data.seen)
    return Suite(base, experts, encoder, fitting_heads(zoo.heads, data, encoder), data)


def predict(suite: Suite, draws: int, output: Path | None) -> None:
    """Measure all pairs; print a table and a sentence per merge method.

    Args:
        suite: The experts and data.
        draws: Number of renamings, and of draws of experts.
        output: JSON file for the numbers of all pairs.
    """
    individual = {task: suite.accuracy(expert, task) for task, expert in suite.experts.items()}
    found = predictors(suite)
    lost = {name: suite.lost(method, individual) for name, method in METHODS.items()}
    if output is not None:
        numbers = {"tasks": list(suite.experts), "individual": individual}
        numbers |= {name: values.tolist() for name, values in [*found.items(), *lost.items()]}
        write_text(output, json.dumps(numbers, indent=1))
    for name, values in lost.items():
        print(f"Accuracy lost by {name}, {len(suite.pairs)} pairs\n")
        print(report.markdown(HEADER, rows(found, values, draws)))
        print(f"\n{sentence(name, found, values, draws)}\n")


def main() -> int:
    """Print the study that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--data-root", required=True, help="the suite's images")
    add("--config", default="configs/mini/sml.yaml", help="the run whose experts are merged")
    add("--unlabelled", type=int, default=128, help="held-out images of all tasks together")
    add("--draws", type=int, default=5000, help="renamings, and draws of experts")
    add("--output", type=Path, help="JSON of the numbers of all pairs")
    add("--sizes", type=int, nargs="+", help="numbers of images, instead of the test")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="draws of images with --sizes")
    add("options", nargs="*", help="more options of fit, after --")
    given = parser.parse_args()
    suite = open_suite(given)
    if len(suite.experts) < 4:
        parser.error(f"{len(suite.experts)} experts make too few pairs to rank; give 4 or more")
    if given.sizes and len(given.seeds) < 2:
        parser.error(f"--seeds {given.seeds}: give two draws or more to compare")
    if given.sizes:
        print(f"{report.markdown(STABILITY, stability(suite, given.sizes, given.seeds))}\n")
    else:
        predict(suite, given.draws, given.output)
    print(f"Command: `{shlex.join(['python', *sys.argv])}`; {report.machine()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
