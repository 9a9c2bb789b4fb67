"""Compare the merged checkpoints of two tools."""

from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

ROUNDING = 1e-6


@dataclass(frozen=True)
class Agreement:
    """How far apart two merged checkpoints are.

    Attributes:
        largest: Largest absolute difference of two entries.
        apart: Number of entries that differ by more than 1e-6.
        entries: Number of entries.
        update: Root mean square of the second's update over that of the first's; near 1 for
            methods that use random numbers, whose entries cannot be compared.
    """

    largest: float
    apart: int
    entries: int
    update: float


def compare(base: Path, first: Path, second: Path) -> Agreement:
    """Compare two merged checkpoints tensor by tensor.

    Raises:
        ValueError: Their tensor names differ.
    """
    largest, apart, entries, squares = 0.0, 0, 0, [0.0, 0.0]
    with (
        safe_open(base, framework="pt") as start,
        safe_open(first, framework="pt") as one,
        safe_open(second, framework="pt") as other,
    ):
        if set(one.keys()) != set(other.keys()):
            raise ValueError(f"{first} and {second} have different names")
        for name in one.keys():  # noqa: SIM118 (a safe_open is not a mapping)
            origin, a, b = (file.get_tensor(name) for file in (start, one, other))
            gap = (a - b).abs_()
            largest = max(largest, gap.max().item())
            apart += int((gap > ROUNDING).sum())
            entries += gap.numel()
            squares[0] += (a - origin).square_().sum().item()
            squares[1] += (b - origin).square_().sum().item()
    return Agreement(largest, apart, entries, (squares[1] / squares[0]) ** 0.5)
