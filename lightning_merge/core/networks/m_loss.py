"""M-Loss: the difference between averaging weights and averaging outputs (M-Loss, section 3).

For experts k with pre-activations h_k of one layer at the same input and weights a_k,
D = act(sum_k a_k h_k) - sum_k a_k act(h_k): the merged layer's output less the ensemble's.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_merge.core.checks import require_in
from lightning_merge.core.errors import InputError
from lightning_merge.core.networks.affine import Activation, AffineLayer

Reduce = Literal["abs", "square"]

ACTIVATIONS: dict[str, Activation] = {
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "hardswish": functional.hardswish,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": functional.relu,
    "relu6": functional.relu6,
    "silu": functional.silu,
    "tanh": torch.tanh,
}
"""Activations by name."""

_CHUNK = 2**22  # pre-activations in memory at a time: 16 MiB in float32


def _merged_and_discrepancy(
    pre_activations: Tensor, activation: Activation, weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the merged output act(sum_k a_k h_k) and D, both [n, d]."""
    if weights is not None and weights.shape != pre_activations.shape[:1]:
        raise InputError(
            f"weights of shape {list(weights.shape)}: give one per expert, [{len(pre_activations)}]"
        )
    if weights is None:
        merged = activation(pre_activations.mean(0))
        return merged, merged - activation(pre_activations).mean(0)
    merged = activation(torch.tensordot(weights, pre_activations, 1))
    return merged, merged - torch.tensordot(weights, activation(pre_activations), 1)


def node_m_loss(
    pre_activations: Tensor,
    activation: Activation,
    weights: Tensor | None = None,
    reduce: Reduce = "abs",
    *,
    normalized: bool = False,
    eps: float = 1e-4,
) -> Tensor:
    """Node M-Loss, Definition 3.4, averaged over samples.

    Args:
        pre_activations: H of every expert at the same inputs, [K, n, d].
        activation: Element-wise non-linearity.
        weights: Merging weights a, [K]; 1/K each by default.
        reduce: "abs" averages |D| (the paper), "square" averages D^2 (the published code).
        normalized: Divide |D| by |act(sum a h)| + eps before averaging (Definition 3.6).
        eps: Guards the division.

    Returns:
        Losses of the d nodes, [d].

    Examples:
        >>> hidden = torch.tensor([[[-1.0, 2.0]], [[1.0, 4.0]]])  # 2 experts, 1 sample, 2 nodes
        >>> node_m_loss(hidden, torch.relu)  # relu(0) - (0 + 1) / 2, relu(3) - (2 + 4) / 2
        tensor([0.5000, 0.0000])
    """
    merged, loss = _merged_and_discrepancy(pre_activations, activation, weights)
    if normalized:
        loss = loss / (merged.abs() + eps)
    return (loss.abs() if reduce == "abs" else loss.square()).mean(0)


def layer_m_loss(
    pre_activations: Tensor,
    activation: Activation,
    weights: Tensor | None = None,
    *,
    normalized: bool = False,
    eps: float = 1e-4,
) -> Tensor:
    """Layer M-Loss, Definition 3.3: the L2 norm of D over the nodes, averaged over samples.

    For one sample its square is the sum of the squared node losses (Equation 5).

    Args:
        pre_activations: H of every expert at the same inputs, [K, n, d].
        activation: Element-wise non-linearity.
        weights: Merging weights a, [K]; 1/K each by default.
        normalized: Divide by the norm of act(sum a h) + eps (Definition 3.5).
        eps: Guards the division.

    Returns:
        A scalar tensor.

    Examples:
        >>> hidden = torch.tensor([[[-3.0, -4.0]], [[3.0, 4.0]]])  # 2 experts, 1 sample, 2 nodes
        >>> layer_m_loss(hidden, torch.relu)  # norm of (-1.5, -2)
        tensor(2.5000)
    """
    merged, discrepancy = _merged_and_discrepancy(pre_activations, activation, weights)
    loss = discrepancy.norm(dim=-1)
    if normalized:
        loss = loss / (merged.norm(dim=-1) + eps)
    return loss.mean()


class MLosses(NamedTuple):
    """All M-Losses of one layer, averaged over samples; see `m_losses`.

    Attributes:
        node: Definition 3.4, [d].
        node_normalized: Definition 3.6, [d].
        layer: Definition 3.3, [].
        layer_normalized: Definition 3.5, [].
        norm: L2 norm of the merged output, by which Definition 3.5 divides, [].

    Examples:
        >>> losses = m_losses(torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 5.0]]))
        >>> losses.layer, losses.norm, losses.layer_relative
        (tensor(1.), tensor(5.), tensor(0.2000))
    """

    node: Tensor
    node_normalized: Tensor
    layer: Tensor
    layer_normalized: Tensor
    norm: Tensor

    @property
    def layer_relative(self) -> Tensor:
        """Layer M-Loss over the norm of the merged output, see `relative_m_loss`."""
        return relative_m_loss(self.layer, self.norm)


def m_losses(merged: Tensor, ensemble: Tensor, eps: float = 1e-4) -> MLosses:
    """Return `node_m_loss` and `layer_m_loss`, normalised and not, of given outputs.

    Args:
        merged: Merged output act(sum_k a_k h_k), [n, d].
        ensemble: Ensemble's output sum_k a_k act(h_k), [n, d].
        eps: Guards the division.

    Examples:
        >>> m_losses(torch.tensor([[0.0, 3.0]]), torch.tensor([[0.5, 3.0]])).node
        tensor([0.5000, 0.0000])
    """
    loss = (merged - ensemble).abs()
    relative = loss / (merged.abs() + eps)
    return MLosses(loss.mean(0), relative.mean(0), *layer_m_losses(merged, ensemble, eps))


def layer_m_losses(
    merged: Tensor, ensemble: Tensor, eps: float = 1e-4
) -> tuple[Tensor, Tensor, Tensor]:
    """Return only the last three of `m_losses`.

    Examples:
        >>> layer_m_losses(torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 5.0]]))
        (tensor(1.), tensor(0.2000), tensor(5.))
    """
    loss, norm = (merged - ensemble).norm(dim=-1), merged.norm(dim=-1)
    return loss.mean(), (loss / (norm + eps)).mean(), norm.mean()


def relative_m_loss(layer: Tensor, norm: Tensor, eps: float = 1e-4) -> Tensor:
    """Return layer M-Loss in units of the layer's output: a ratio of means, not a mean of ratios.

    Definition 3.5 divides sample by sample. If all nodes of a ReLU layer are off at a sample in the
    merged network, for example at positions of a dark border, that sample is divided by eps alone,
    and a few such samples outweigh all others. Here the mean over samples of Definition 3.3 is
    divided by the mean norm of the merged output. This variant is ours; for samples of equal norm
    both agree.

    Args:
        layer: Layer M-Loss, Definition 3.3, of any shape.
        norm: Mean norm of the merged output, of that shape.
        eps: Guards the division, as in Definition 3.5.

    Examples:
        >>> relative_m_loss(torch.tensor(1.0), torch.tensor(5.0))
        tensor(0.2000)
    """
    return layer / (norm + eps)


def linear_node_m_loss(
    inputs: Tensor,
    weights: Tensor,
    biases: Tensor | None,
    activation: Activation,
    reduce: Reduce = "abs",
) -> Tensor:
    """Return the node M-Loss of a linear layer, in chunks of samples, all experts in one product.

    Args:
        inputs: The layer's inputs, the same for all experts, [n, in].
        weights: The experts' weights, [K, d, in].
        biases: The experts' biases, [K, d], if the layer has one.
        activation: Element-wise non-linearity that follows the layer.
        reduce: As for `node_m_loss`.

    Returns:
        Losses of the d nodes, [d].

    Examples:
        >>> weights = torch.tensor([[[1.0]], [[-1.0]]])  # 2 experts, 1 node, 1 input
        >>> linear_node_m_loss(torch.tensor([[2.0]]), weights, None, torch.relu)
        tensor([1.])
    """
    experts, nodes = weights.shape[:2]
    matrix, offset = weights.flatten(0, 1), None if biases is None else biases.flatten()
    loss = inputs.new_zeros(nodes)
    for chunk in inputs.split(max(1, _CHUNK // (experts * nodes))):
        hidden = functional.linear(chunk, matrix, offset).unflatten(-1, (experts, nodes))
        chunk_loss = node_m_loss(hidden.movedim(1, 0), activation, reduce=reduce)
        loss = loss + chunk_loss * (len(chunk) / len(inputs))
    return loss


def affine_node_m_loss(
    layer: AffineLayer,
    inputs: Tensor,
    stacks: Sequence[Mapping[str, Tensor]],
    activation: Activation,
    reduce: Reduce = "abs",
) -> Tensor:
    """Return the node M-Loss of any affine layer, such as a convolution followed by BatchNorm.

    Args:
        layer: The modules.
        inputs: The layer's inputs, the same for all experts, [n, ...].
        stacks: The experts' tensors [K, ...] of each module by their names in it.
        activation: Element-wise non-linearity that follows.
        reduce: As for `node_m_loss`.

    Returns:
        Losses of the output features or channels, [d]; tokens and positions are samples.

    Examples:
        >>> layer = AffineLayer(("fc",), (nn.Linear(1, 1, bias=False),), torch.relu)
        >>> stacks = [{"weight": torch.tensor([[[1.0]], [[-1.0]]])}]  # 2 experts
        >>> affine_node_m_loss(layer, torch.tensor([[2.0]]), stacks, torch.relu)
        tensor([1.])
    """
    losses = [
        share * node_m_loss(hidden, activation, reduce=reduce)
        for share, hidden in layer.pre_activations(inputs, stacks, _CHUNK)
    ]
    return torch.stack(losses).sum(0)


def rank_normalize(loss: Tensor) -> Tensor:
    """Return RankNorm of Algorithm 1: ascending ranks 0 .. d-1 over d - 1, [d], in float64.

    Of equal losses the first ranks highest; a single node ranks 0.

    Examples:
        >>> rank_normalize(torch.tensor([0.3, 0.1, 0.2]))
        tensor([1.0000, 0.0000, 0.5000], dtype=torch.float64)
    """
    nodes = len(loss)
    ranks = torch.arange(nodes - 1, -1, -1, dtype=torch.float64, device=loss.device)
    ranks = torch.empty_like(ranks).scatter_(0, loss.argsort(descending=True, stable=True), ranks)
    return ranks / max(nodes - 1, 1)


def row_keep_ratios(loss: Tensor, keep: float, spread: float) -> Tensor:
    """Return the fraction of inputs that each node keeps, keep - spread * rank, [d], in float64.

    The node with the highest loss keeps the least (M-TIES, Algorithm 1, line 15).

    Raises:
        InputError: `keep` is outside [0, 1], `spread` outside [0, keep], or a loss is NaN.

    Examples:
        >>> row_keep_ratios(torch.tensor([0.3, 0.1, 0.2]), keep=0.5, spread=0.2).tolist()
        [0.3, 0.5, 0.4]
    """
    require_in("[0, 1]", keep=keep)
    require_in(f"[0, {keep}]", spread=spread)
    if bool(loss.isnan().any()):
        raise InputError("loss has NaN values, which have no rank: look for them in the inputs")
    return keep - spread * rank_normalize(loss)


def expected_m_loss(
    activation: str | Activation,
    sigma: float,
    k: float,
    num_experts: int = 2,
    paper: bool = False,
) -> float:
    """Return the node M-Loss expected of experts that differ by Gaussian noise (M-Loss, section 4).

    For x ~ U(-k, k) and K pre-activations x + N(0, sigma^2), with sigma << k and an activation f
    that is curved only within (-k, k),

        E|D| = (1 - 1/K) TV(f') sigma^2 / (4 k),

    TV(f') being the total variation of f': 1 for ReLU, 1 - a for a leaky ReLU of slope a, 1.51562
    for GELU, 1.39936 for SiLU and QuickGELU, 2 for ReLU6 and 3 for hardswish. It follows from
    D = f'' v / 2 to second order, v being the variance of the pre-activations, with mean
    (1 - 1/K) sigma^2; for a kink it is exact, but where the curve beside a kink bends the other
    way, as in hardswish, |D| is less within sigma of it, and the formula a limit for small sigma.

    The paper, for K = 2, has sigma^2 / k times 1 / sqrt(2 pi), (1 - a) / sqrt(2 pi) and 1/4 for
    ReLU, leaky ReLU and GELU, where the formula above and simulation give 0.125, 0.125 (1 - a) and
    0.18945. The paper assumes |x + delta| to be independent of which pre-activations are positive;
    for GELU it assumes f' to be monotonic and the density of x to be 1/k.

    Args:
        activation: A name of `ACTIVATIONS`, or an element-wise function such as nn.LeakyReLU(0.1).
        sigma: Standard deviation of the experts' pre-activations about the base's.
        k: Half the range of the base's pre-activations.
        num_experts: K.
        paper: Use the paper's constants, which are too large.

    Returns:
        The expected |D| of one node, in units of the pre-activations.

    Raises:
        InputError: The activation's name is unknown, a number is out of its bounds, or the paper
            has no such case.

    Examples:
        >>> expected_m_loss("relu", sigma=0.5, k=2.0)  # 1/2 of 0.25 / 8
        0.015625
    """
    require_in("[0, inf)", sigma=sigma)
    require_in("(0, inf)", k=k)
    require_in("[1, inf)", num_experts=num_experts)
    if isinstance(activation, str):
        if activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise InputError(f"activation={activation!r}: choose one of {known}, or a function")
        activation = ACTIVATIONS[activation]
    if not paper:
        return (1 - 1 / num_experts) * _variation(activation) * sigma**2 / (4 * k)
    if num_experts != 2:
        raise InputError(f"num_experts={num_experts}: the paper covers 2; choose paper=False")
    return _paper_constant(activation) * sigma**2 / k


def _variation(activation: Activation) -> float:
    """Return the total variation of an activation's derivative, from second differences."""
    step = 2.0**-10
    x = torch.arange(-32, 32 + step, step, dtype=torch.float64)
    return float(activation(x).diff(n=2).abs().sum()) / step


def _paper_constant(activation: Activation) -> float:
    """Return the paper's E|D| k / sigma^2 for two experts."""
    if isinstance(activation, nn.LeakyReLU):
        return (1 - activation.negative_slope) / math.sqrt(2 * math.pi)
    if activation is functional.relu or isinstance(activation, nn.ReLU):
        return 1 / math.sqrt(2 * math.pi)
    if activation is functional.gelu or isinstance(activation, nn.GELU):
        return 0.25
    raise InputError(
        f"activation={activation!r}: the paper covers relu, gelu and nn.LeakyReLU(slope); "
        "choose paper=False"
    )
