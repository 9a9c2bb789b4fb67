"""A pytest plugin that makes torch's device `strict` and lets every trainer run on it.

See strict.cpp: it stands in for a GPU where tensors of device and host must not be mixed.
"""

from pathlib import Path
from types import ModuleType

import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils.cpp_extension import load

SOURCE = str(Path(__file__).with_name("strict.cpp"))
load("lightning_merge_strict", [SOURCE], extra_cflags=["-O0"], is_python_module=False)
torch.utils.rename_privateuse1_backend("strict")

functions = {
    "is_available": lambda: True,
    "is_initialized": lambda: True,
    "_is_in_bad_fork": lambda: False,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "synchronize": lambda *_: None,
    "manual_seed_all": lambda _: None,
    "get_rng_state": lambda *_: torch.get_rng_state(),
    "set_rng_state": lambda state, *_: None,
    "get_amp_supported_dtype": lambda: [torch.float16, torch.bfloat16],
}
module = ModuleType("torch.strict")
vars(module).update(functions)
torch._register_device_module("strict", module)
torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)

DEVICE = torch.device("strict", 0)
plain = SingleDeviceStrategy.__init__


def on_strict(self, device="cpu", *args, **options):
    """Take the strict device where the trainer would take the CPU."""
    plain(self, DEVICE if str(device) == "cpu" else device, *args, **options)


SingleDeviceStrategy.__init__ = on_strict  # type: ignore[method-assign]
CPUAccelerator.setup_device = lambda *_: None  # type: ignore[method-assign]
