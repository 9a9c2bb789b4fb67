"""Prediction of merging coefficients from statistics of weights (StatsMerging)."""

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_merge.core.checks import require_finite
from lightning_merge.core.errors import InputError

Kind = Literal["mlp2", "mlp4", "transformer2", "free"]
Level = Literal["layer", "task"]
Normalize = Literal["none", "softmax", "clamp"]
ATTENTION_HEADS = 4
PRIOR = 0.3


class StatsMergeLearner(nn.Module):
    """One small network, shared by all tasks and layers, that predicts coefficients.

    Its last layer starts at zero, so that learning starts exactly at the prior
    (StatsMerging, section 3.2; the prior is ours, the paper starts at random).

    Args:
        features: Standardised statistics [K, L, F].
        kind: "mlp2" and "mlp4" see one (task, layer) at a time, "transformer2" all layers of a
            task; "free" is the control without statistics: one parameter per coefficient.
        level: One coefficient per task and layer, or one per task (statistics averaged).
        normalize: "softmax" makes the coefficients of a layer sum to 1 (Eq. 10); "clamp" clips
            them to [0, 1] (AdaMerging, Yang et al. 2024); "none" leaves them as they are.
        prior: Initial coefficient; leave it out with softmax, which starts at 1 / K.
        hidden: Width of the hidden layers.

    Raises:
        InputError: The width is too small or not divisible by the number of heads, or the prior
            is not finite, has no effect or has a zero gradient.

    Examples:
        >>> learner = StatsMergeLearner(torch.randn(2, 5, 4), prior=0.3)  # 2 tasks, 5 layers
        >>> learner().shape, bool((learner() == 0.3).all())
        (torch.Size([2, 5]), True)
    """

    features: Tensor

    def __init__(
        self,
        features: Tensor,
        kind: Kind = "mlp2",
        level: Level = "layer",
        normalize: Normalize = "none",
        prior: float = PRIOR,
        hidden: int = 64,
    ) -> None:
        super().__init__()
        if hidden < 1 or (kind == "transformer2" and hidden % ATTENTION_HEADS):
            raise InputError(
                f"hidden={hidden} must be at least 1, and a multiple of {ATTENTION_HEADS} for "
                "learner='transformer2'"
            )
        _check_prior(prior, normalize)
        self.normalize, self.prior = normalize, prior
        self.num_layers = features.shape[1]
        if level == "task":
            features = features.mean(1, keepdim=True)
        self.register_buffer("features", features, persistent=False)
        self.network = _network(kind, features, hidden)

    def forward(self) -> Tensor:
        """Return the coefficients [K, L]."""
        raw = self.network(self.features).squeeze(-1).expand(-1, self.num_layers)
        if self.normalize == "softmax":
            return raw.softmax(0)
        values = self.prior + raw
        return values.clamp(0, 1) if self.normalize == "clamp" else values


class _Free(nn.Module):
    """Coefficients as parameters, independent of statistics."""

    def __init__(self, tasks: int, layers: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(tasks, layers, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Return the parameters [K, L, 1]."""
        return self.values


def _check_prior(prior: float, normalize: Normalize) -> None:
    require_finite(prior=prior)
    if normalize == "softmax" and prior != PRIOR:
        raise InputError(
            f"prior={prior} has no effect with normalize='softmax', starting at 1 / K: omit it"
        )
    if normalize == "clamp" and not 0 < prior < 1:
        raise InputError(
            f"prior={prior} has a zero gradient with normalize='clamp': give a number between 0 "
            "and 1, both excluded"
        )


def _network(kind: Kind, features: Tensor, hidden: int) -> nn.Module:
    tasks, layers, inputs = features.shape
    if kind == "free":
        return _Free(tasks, layers)
    last = nn.Linear(hidden, 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    if kind == "transformer2":
        block = nn.TransformerEncoderLayer(
            hidden, ATTENTION_HEADS, 2 * hidden, dropout=0.0, batch_first=True
        )
        return nn.Sequential(
            nn.Linear(inputs, hidden),
            nn.TransformerEncoder(block, 2, enable_nested_tensor=False),
            last,
        )
    depth = {"mlp2": 2, "mlp4": 4}[kind]
    widths = [inputs] + [hidden] * (depth - 1)
    steps: list[nn.Module] = []
    for before, after in pairwise(widths):
        steps += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*steps, last)
