"""Settings for every test: one thread for PyTorch, no window for matplotlib."""

import os
import sys

import pytest

os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.fixture(autouse=True)
def one_torch_thread():
    """Tests that share a machine finish sooner on one thread each; torch is not loaded for it."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
