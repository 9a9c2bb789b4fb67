"""Commands run by several processes: fixtures for what they compute and what they refuse.

Processes are forked from the test, as torchrun would start them: the libraries are loaded once.
"""

import pytest
import torch
import yaml
from forks import as_torchrun, forked
from lightning.pytorch.strategies import FSDPStrategy
from tiny_zoo import ENCODER, TRAINER
from torch.distributed.fsdp import FullyShardedDataParallel

from lightning_merge.cli.main import main


@pytest.fixture
def together(tmp_path):
    """Let processes work together: together(size, work) -> what each work(rank) has returned."""
    return lambda size, work: forked(size, as_torchrun(work, size), tmp_path)


@pytest.fixture
def command(together):
    """Run a command in several processes: command(2, "fit", ...) -> their exit codes."""

    def run(size, *arguments, at_rank=None):
        def work(rank):
            own = (at_rank or {}).get(rank, [])
            return main([*map(str, arguments), *map(str, own)])

        return together(size, work)

    return run


def on(size):
    return ["--trainer.strategy", "ddp", "--trainer.devices", size]


class CPUShards(FSDPStrategy):
    """FSDP without a GPU, which Lightning does not offer."""

    def _setup_model(self, model):
        return FullyShardedDataParallel(model, device_id=torch.device("cpu"), **self.kwargs)


@pytest.fixture
def expert_config(files, root, tmp_path):
    """Write the config of a FineTune run."""
    path = tmp_path / "expert.yaml"
    options = {
        "encoder": {"class_path": "lightning_merge.models.MiniViT", "init_args": ENCODER},
        "output": str(tmp_path / "expert.safetensors"),
        "base": files.base,
        "heads": files.heads,
        "augment": {"erase": 0.3},
        "overwrite": True,
    }
    config = {
        "model": {"class_path": "lightning_merge.modules.FineTune", "init_args": options},
        "data": {"root": str(root), "tasks": ["shapes"], "fit_on": "train", "batch_size": 6},
        "trainer": {**TRAINER, "max_epochs": 4},
    }
    path.write_text(yaml.safe_dump(config))
    return path
