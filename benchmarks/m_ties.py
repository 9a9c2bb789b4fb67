"""Time M-TIES next to its necessary parts: a forward pass, the experts' products, and TIES."""

import time
from collections.abc import Callable
from functools import partial
from statistics import median

import report
import torch
import torch.nn.functional as F
from checkpoints import Checkpoints, Tower
from torch import Tensor, nn

from lightning_merge.core.checkpoints.checkpoint import Checkpoint, open_checkpoint
from lightning_merge.core.networks.hooks import Args, Kwargs, hooked
from lightning_merge.methods import MTies, Ties

IMAGES = 128


def time_m_ties(files: Checkpoints, tower: Tower, repeat: int) -> str:
    """Time M-TIES in this process, from files to tensors, and each of its parts.

    Args:
        files: Files of base and experts.
        tower: Layout of the network.
        repeat: Number of runs of each, in turns.

    Returns:
        A table of seconds, and the ratio of M-TIES to the sum of its parts.
    """
    base = open_checkpoint(files.base)
    experts = {task: open_checkpoint(path) for task, path in files.experts.items()}
    model, images = network(tower, base), pictures(tower)
    inputs = fc1_inputs(model, images)
    weights = {name: fc1_weights(experts, name) for name in inputs}
    parts = {
        "forward pass": lambda: forward(model, images),
        "experts' fc1 products": lambda: products(inputs, weights),
        "TIES, per tensor": lambda: Ties(density=0.2, trim="per_tensor")(base, experts),
        "M-TIES": lambda: MTies()(base, experts, model=model, batches=images),
    }
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(repeat):
        for name, part in parts.items():
            seconds[name].append(stopwatch(part))
    return table(seconds)


def table(seconds: dict[str, list[float]]) -> str:
    """Return the table of parts, their sum, and M-TIES as a multiple of it; M-TIES comes last."""
    middle = {name: median(values) for name, values in seconds.items()}
    whole = middle["M-TIES"]
    floor = sum(middle.values()) - whole
    lines = [[name, f"{min(values):.2f}, {median(values):.2f}"] for name, values in seconds.items()]
    lines.insert(-1, ["sum of these", f"{floor:.2f}"])
    lines.append(["M-TIES / sum", f"{whole / floor:.2f}"])
    return report.markdown([f"part, {IMAGES} images", "s: best, median"], lines)


def network(tower: Tower, base: Checkpoint) -> nn.Module:
    """Return open_clip's visual tower with the base's weights."""
    from open_clip.transformer import VisionTransformer

    model = VisionTransformer(
        image_size=tower.image,
        patch_size=tower.patch,
        width=tower.width,
        layers=tower.layers,
        heads=tower.width // 64,
        mlp_ratio=4.0,
        output_dim=tower.embed,
    )
    model.load_state_dict(dict(base))
    return model.eval()


def pictures(tower: Tower) -> Tensor:
    """Return random numbers in place of normalised images, [128, 3, side, side]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(IMAGES, 3, tower.image, tower.image, generator=generator)


@torch.no_grad()
def fc1_inputs(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Return the inputs of every block's first linear layer, [images * tokens, width], by name."""
    inputs: dict[str, Tensor] = {}

    def note(name: str, module: nn.Module, args: Args, _: Kwargs) -> None:
        inputs[name] = args[0].flatten(0, -2)

    layers = [name for name, _ in model.named_modules() if name.endswith("mlp.c_fc")]
    with hooked(model, {name: partial(note, name) for name in layers}):
        model(images)
    return inputs


def fc1_weights(experts: dict[str, Checkpoint], name: str) -> list[tuple[Tensor, Tensor]]:
    """Return weight and bias of one layer in every expert."""
    return [(e[f"{name}.weight"], e[f"{name}.bias"]) for e in experts.values()]


@torch.no_grad()
def forward(model: nn.Module, images: Tensor) -> None:
    """Run one forward pass over all images at once."""
    model(images)


@torch.no_grad()
def products(inputs: dict[str, Tensor], weights: dict[str, list[tuple[Tensor, Tensor]]]) -> None:
    """Compute the outputs of every expert's layer at the same inputs."""
    for name, values in inputs.items():
        for weight, bias in weights[name]:
            F.linear(values, weight, bias)


def stopwatch(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
