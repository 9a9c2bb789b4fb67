"""Merge with FusionBench, from safetensors to safetensors; run by a Python with FusionBench.

Arguments: average, task_arithmetic, dare or ties; then output, base and experts.
"""

import sys

import torch
from fusion_bench import BaseModelPool
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


class Files(BaseModelPool):
    """A pool that reads a model on request, as FusionBench's own pools do."""

    def load_model(self, model_name_or_config: str, *args, **kwargs) -> nn.Module:
        """Build a module from the tensors of one file."""
        return module(load_file(self._models[model_name_or_config]))


def module(weights: dict[str, Tensor]) -> nn.Module:
    """Return a module with these parameters under these names."""
    root = nn.Module()
    for name, tensor in weights.items():
        *path, leaf = name.split(".")
        owner = root
        for part in path:
            if not hasattr(owner, part):
                owner.add_module(part, nn.Module())
            owner = getattr(owner, part)
        owner.register_parameter(leaf, nn.Parameter(tensor))
    return root


def ties(base: str, experts: list[str]) -> dict[str, Tensor]:
    """Merge by TIES with FusionBench's functions; its algorithm class keeps several more copies."""
    from fusion_bench.method.ties_merging.ties_merging_utils import (
        state_dict_to_vector,
        ties_merging,
        vector_to_state_dict,
    )

    start = load_file(base)
    origin = state_dict_to_vector(start)
    vectors = torch.empty(len(experts), origin.numel())
    for vector, path in zip(vectors, experts, strict=True):
        vector.copy_(state_dict_to_vector(load_file(path))).sub_(origin)
    merged = ties_merging(vectors, reset_thresh=0.2, merge_func="mean")
    return vector_to_state_dict(origin + merged, start)


@torch.no_grad()
def main(method: str, output: str, base: str, *experts: str) -> None:
    """Merge and save."""
    if method == "ties":
        save_file(ties(base, list(experts)), output)
        return
    pool = Files({"_pretrained_": base} | {f"task{k}": path for k, path in enumerate(experts)})
    if method == "average":
        from fusion_bench.method import SimpleAverageAlgorithm

        merged = SimpleAverageAlgorithm().run(pool)
    elif method == "task_arithmetic":
        from fusion_bench.method import TaskArithmeticAlgorithm

        merged = TaskArithmeticAlgorithm(scaling_factor=0.3).run(pool)
    else:
        from fusion_bench.method.dare import DareTaskArithmetic

        merged = DareTaskArithmetic(
            scaling_factor=0.3, sparsity_ratio=0.9, only_on_linear_weights=False
        ).run(pool)
    save_file(merged.state_dict(), output)


if __name__ == "__main__":
    main(*sys.argv[1:])
