"""`recipes/scripts/count_traffic.py` as a module: network calls on fake CUDA tensors."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "recipes/scripts/count_traffic.py"


def load_count_traffic() -> ModuleType:
    """Import the script; skip the test if fake CUDA tensors cannot be made on this machine."""
    if torch.version.cuda is None and not shutil.which("g++"):
        pytest.skip("torch is built without CUDA and there is no g++ for a device guard")
    if "count_traffic" not in sys.modules:
        spec = importlib.util.spec_from_file_location("count_traffic", SCRIPT)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.load_device_guard()
        sys.modules["count_traffic"] = module
    return sys.modules["count_traffic"]
