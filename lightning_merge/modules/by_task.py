"""One pass of a network over the inputs of several tasks."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def by_task(encode: Callable[[Tensor], Tensor], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Encode the inputs of several tasks, with one pass for all that have the same shape.

    Images of all tasks go through the network together, so BatchNorm sees them mixed. Texts of
    different widths do not: padding them to the widest task would take two to five times as long.

    Args:
        encode: Function from inputs [n, ...] to features [n, dim].
        inputs: Task -> inputs.

    Returns:
        Task -> features.

    Examples:
        >>> def encode(inputs):
        ...     print("a pass over", list(inputs.shape))
        ...     return inputs.sum(1, keepdim=True)
        >>> a, b, c = torch.ones(2, 3), torch.ones(1, 5), torch.ones(1, 3)
        >>> found = by_task(encode, {"a": a, "b": b, "c": c})
        a pass over [3, 3]
        a pass over [1, 5]
        >>> {task: features.flatten().tolist() for task, features in found.items()}
        {'a': [3.0, 3.0], 'b': [5.0], 'c': [3.0]}
    """
    together: dict[torch.Size, list[str]] = {}
    for task, own in inputs.items():
        together.setdefault(own.shape[1:], []).append(task)
    found: dict[str, Tensor] = {}
    for tasks in together.values():
        features = encode(torch.cat([inputs[task] for task in tasks]))
        sizes = [len(inputs[task]) for task in tasks]
        found.update(zip(tasks, features.split(sizes), strict=True))
    return {task: found[task] for task in inputs}
