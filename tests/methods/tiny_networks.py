"""Tiny networks of the four kinds that encoders come in, and plain ways to look into them."""

import copy

import torch
from test_m_ties import open_clip_tower, timm_vit, transformers_clip, weights_of
from torch import nn
from torch.nn import functional

from lightning_merge.models.mini_resnet import MiniResNet


def timm_resnet():
    from timm.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, [2, 1, 1, 1], num_classes=0, channels=(4, 6, 6, 8), stem_width=4)


def mini_resnet():
    """The suite's own, on channels-last images."""
    encoder = MiniResNet(image_size=16, channels=[8, 8, 8, 10])
    assert encoder.memory_format == "channels_last"
    return encoder.backbone


class Tied(nn.Module):
    """Two layers with biases of their own that share a weight, as some language models do."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])
        self.blocks[1].weight = self.blocks[0].weight
        self.act, self.act2, self.head = nn.GELU(), nn.Tanh(), nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.act2(self.blocks[1](self.act(self.blocks[0](x)))))


TIED = ("blocks.0.weight", "blocks.1.weight")


def tied_zoo(number, dtype=torch.float32):
    """As `zoo_of`; the weights hold two equal copies, as files do."""
    torch.manual_seed(0)
    model = Tied().to(dtype).eval()
    base, experts = weights_of(model), {}
    for k in range(number):
        expert = {n: t + 0.1 * torch.randn_like(t) for n, t in base.items()}
        experts[f"task{k}"] = expert | {TIED[1]: expert[TIED[0]].clone()}
    return model, base, experts


NETWORKS = {
    "open_clip": open_clip_tower,
    "timm": timm_vit,
    "transformers": transformers_clip,
    "resnet": timm_resnet,
    "mini_resnet": mini_resnet,
}


def features(output):
    return getattr(output, "pooler_output", output)


def zoo_of(kind, number, dtype=torch.float32, size=0.05):
    """A network in evaluation mode, its weights and experts of it, BatchNorm buffers included."""
    torch.manual_seed(0)
    model = NETWORKS[kind]().to(dtype).eval()
    base = weights_of(model)
    experts = {}
    for k in range(number):
        noise = {n: size * torch.randn(t.shape, dtype=dtype) for n, t in base.items()}
        experts[f"task{k}"] = {
            n: t + (noise[n].abs() if "running" in n else noise[n]) if t.is_floating_point() else t
            for n, t in base.items()
        }
    return model, base, experts


def loaded(model, weights):
    """A copy of the network with other weights."""
    other = copy.deepcopy(model).eval()
    other.load_state_dict(weights)
    return other


def seen_inputs(model, call):
    """What every weight is multiplied with while `call()` runs, [n, in], by plain module hooks."""
    seen, handles = {}, []

    def note(name, module, args, kwargs):
        if isinstance(module, nn.MultiheadAttention):
            query = args[0] if args else kwargs["query"]
            seen[f"{name}.in_proj_weight"] = query.flatten(0, -2)
            seen[f"{name}.out_proj.weight"] = heads_joined(module, query)
        elif isinstance(module, nn.Conv2d):
            rows = functional.unfold(
                args[0], module.kernel_size, module.dilation, module.padding, module.stride
            )
            seen[f"{name}.weight"] = rows.movedim(1, -1).flatten(0, -2)
        else:
            seen[f"{name}.weight"] = args[0].flatten(0, -2)

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.MultiheadAttention):
            hook = lambda m, a, k, name=name: note(name, m, a, k)  # noqa: E731
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    with torch.no_grad():
        call()
    for handle in handles:
        handle.remove()
    return seen


def heads_joined(module, tokens):
    """Self attention up to its output projection, by its formula, [n * tokens, dim]."""
    if not module.batch_first:
        tokens = tokens.transpose(0, 1)
    projected = tokens @ module.in_proj_weight.T + module.in_proj_bias
    split = (part.unflatten(-1, (module.num_heads, -1)) for part in projected.chunk(3, -1))
    q, k, v = (part.transpose(1, 2) for part in split)
    joined = ((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
    return (joined if module.batch_first else joined.transpose(0, 1)).flatten(0, 1)


def least_squares(inputs, weights):
    """What minimises sum_k ||X_k W^T - X_k W_k^T||^2 / n_k, nearest to the mean of all W_k.

    Args: inputs X_k [n_k, in] and weights W_k of shape [out, ...], one of each per expert.
    """
    mean = sum(weights) / len(weights)
    power = sum(x.square().mean() for x in inputs)
    rows = [x / len(x) ** 0.5 for x in inputs]
    rows.append((1e-8 * power) ** 0.5 * torch.eye(rows[0].shape[1]).to(power))
    wanted = [x @ (w - mean).flatten(1).T for x, w in zip(rows[:-1], weights, strict=True)]
    wanted.append(torch.zeros(rows[0].shape[1], len(mean)).to(power))
    solution = torch.linalg.lstsq(torch.cat(rows), torch.cat(wanted)).solution
    return mean + solution.T.reshape(mean.shape)
