"""What a session's worker is made of, with a device that runs out of memory when the benchmark says so."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bluesky_cdi.protocols import Estimate, Reconstructor, RunInfo
from bluesky_cdi.remote.setup import Setup, live_setup

# Names a file: while it is there, the next step takes it away and finds no memory.
SIGN = "BLUESKY_CDI_BENCH"


def setup(arguments: Mapping[str, Any]) -> Setup:
    """Make what a session's worker is made from, as `live_setup` does.

    Parameters
    ----------
    arguments : Mapping
        As `live_arguments` gives them.
    """
    made = live_setup(arguments)
    real = made.parts.make_reconstructor

    def make_reconstructor(info: RunInfo) -> Reconstructor:
        return _WithoutMemory(real(info), Path(os.environ[SIGN]))

    return replace(made, parts=replace(made.parts, make_reconstructor=make_reconstructor))


class _WithoutMemory:
    def __init__(self, real: Reconstructor, sign: Path) -> None:
        self._real, self._sign = real, sign

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def step(self, *args: Any, **options: Any) -> Estimate | None:
        if self._sign.exists():
            import torch

            self._sign.unlink()
            raise torch.OutOfMemoryError("CUDA out of memory: the benchmark says so")
        return self._real.step(*args, **options)
