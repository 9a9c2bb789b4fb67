"""The benchmark of a step of coefficient learning, at a tiny size."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import coefficient_step as bench

MIB = 1 << 20
TINY = bench.Setting(
    tasks=3, images=2, width=64, depth=2, patch=32, device="cpu", precision="32-true", offload=False
)


def test_all_ways_to_take_the_gradient_agree():
    learning = bench.Learning(TINY)
    ours, *others = (learning.run(step) for step in TINY.steps)
    assert len(others) == 2
    for other in others:
        torch.testing.assert_close(other, ours, rtol=1e-3, atol=1e-6)


def test_the_gradient_is_the_slope_of_the_loss():
    learning = bench.Learning(TINY)
    gradient = learning.run(bench.OURS)
    direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def loss(step):
        weights = learning.stacked.merge(learning.values + step * direction)
        return learning.of(weights, learning.images).item()

    slope = (loss(0.01) - loss(-0.01)) / 0.02
    assert slope == pytest.approx((gradient * direction).sum().item(), rel=0.05)


def test_operations_are_those_of_the_products():
    """Twice as many in backward as in forward; images and heads need no gradient.

    Attention is counted by some versions of torch.
    """
    _, operations = bench.measure_times(TINY, repeat=1)
    images, tokens, width = 3 * 2, 50, 64
    patches = images * 49 * 3 * 32 * 32 * width
    blocks = TINY.depth * images * tokens * 12 * width * width
    attention = TINY.depth * images * 2 * tokens * tokens * width
    projection, heads = images * width * 512, images * 512 * bench.CLASSES
    expected = 2 * (2 * patches + 3 * (blocks + projection) + 2 * heads)
    assert expected <= operations <= expected + 2 * 4 * attention


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_peak_is_the_most_since_it_was_forgotten():
    code = f"""
import coefficient_step as bench, torch
torch.ones(40 * {MIB})
before = bench.in_use(peak=False)
bench.forget_peak()
torch.ones(20 * {MIB})
print(bench.in_use(peak=True) - before)
"""
    # A process of its own: this one gives memory of earlier tests back at any time.
    path = {"PYTHONPATH": os.pathsep.join([str(Path(bench.__file__).parent), *sys.path])}
    peak = subprocess.check_output([sys.executable, "-c", code], env={**os.environ, **path})
    assert 75 * MIB < int(peak) < 100 * MIB


def test_the_table_compares_with_the_parts():
    seconds = {bench.PLAIN: [2.0, 4.0, 3.0], bench.MERGE: [1.0], bench.OURS: [5.0]}
    memory = {bench.PLAIN: 7.0, bench.OURS: 2.25}
    text = bench.tables(seconds, memory, [("products", "1 GFLOP", 1.5), ("stacks", "1 GB", 0.5)])
    cells = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in text.splitlines()
        if line
    }
    assert cells[bench.PLAIN] == ["2.000, 3.000", "0.750", ""]
    assert cells[bench.OURS] == ["5.000, 5.000", "1.250", "2.25"]
    assert cells["both"][1] == "2.000; ours 2.50 times that"
