"""One tiny CLIP in both libraries, of random weights, and stored in every published form."""

import json
import warnings
from pathlib import Path

import open_clip
import torch
from published import publish
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

BOTH = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2}
BOTH |= {"num_attention_heads": 2, "projection_dim": 24, "hidden_act": "quick_gelu"}
VISION = {**BOTH, "image_size": 32, "patch_size": 8}
TEXT = {**BOTH, "vocab_size": 49408, "hidden_size": 16, "intermediate_size": 64}
TEXT |= {"eos_token_id": 49407, "bos_token_id": 49406, "num_hidden_layers": 1}
CONFIG = {"model_type": "clip", "vision_config": VISION, "text_config": TEXT, "projection_dim": 24}
TOWER_CONFIG = {"model_type": "clip_vision_model", **VISION}


def register(folder: Path, layers: int = 2) -> str:
    """Make open_clip know the model; return its name."""
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "layers": layers, "width": 32, "head_width": 16, "patch_size": 8}
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text, "quick_gelu": True}
    name = f"TinyBoth{layers}-quickgelu"
    (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    return name


def both(name: str, seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """The model in open_clip and in transformers, each with weights of its own."""
    torch.manual_seed(seed)
    theirs = CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=24))
    ours = open_clip.create_model(name)
    with torch.no_grad():
        for tensor in [*ours.parameters(), *theirs.parameters()]:  # no zeros and ones
            tensor.add_(0.02 * torch.randn_like(tensor))
    return ours.eval(), theirs.eval()


def moved(state: dict[str, Tensor], seed: int, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    """Weights as an expert has them that was trained in some of its parts."""
    generator = torch.Generator().manual_seed(seed)
    return {
        n: t + 0.01 * torch.randn(t.shape, generator=generator)
        if n.startswith(prefixes) and t.is_floating_point()
        else t.clone()
        for n, t in state.items()
    }


class ImageEncoder(nn.Module):
    """What is published with task vectors: a CLIP without the text transformer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        del model.transformer


def pickled(name: str, state: dict[str, Tensor], path: Path) -> str:
    """Write weights of open_clip as a whole module of a class that is gone."""
    model = open_clip.create_model(name)
    model.load_state_dict(state)
    return publish(ImageEncoder(model), path)


def scripted(name: str, state: dict[str, Tensor], path: Path) -> str:
    """Write weights of open_clip as OpenAI published theirs: half precision in TorchScript."""
    model = open_clip.create_model(name)
    model.load_state_dict(state)

    class Archive(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    archive = Archive()
    for part, child in model.named_children():
        archive.add_module(part, _Bare(child))
    for part, parameter in model.named_parameters(recurse=False):
        archive.register_parameter(part, parameter)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit.*deprecated")
        torch.jit.save(torch.jit.script(archive.half()), path)
    return str(path)


class _Bare(nn.Module):
    """The tensors of a module, and nothing that it does."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        for name, child in module.named_children():
            keep = type(child).__name__ == "QuickGELU"
            self.add_module(name, child if keep else _Bare(child))
        for name, parameter in module.named_parameters(recurse=False):
            self.register_parameter(name, nn.Parameter(parameter.detach().clone()))

    def forward(self, x: Tensor) -> Tensor:
        return x


def hub_folder(state: dict[str, Tensor], folder: Path, config: dict) -> str:
    """Write weights of transformers as a folder of the Hub."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return str(folder)
