"""What a session's worker is made of, with a device that runs out of memory when the benchmark says so."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bluesky_cdi.protocols import Estimate, QuickReader, Reconstructor, RunInfo
from bluesky_cdi.remote.setup import Setup, live_setup

# Names a file: while it is there, the next step takes it away and finds no memory.
SIGN = "BLUESKY_CDI_BENCH"
# PyTorch asks a GPU for 2 MiB at least, bytes.
SMALLEST = 2**20


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
        reconstructor, sign = real(info), Path(os.environ[SIGN])
        kind = _QuickWithoutMemory if isinstance(reconstructor, QuickReader) else _WithoutMemory
        return kind(reconstructor, sign)

    return replace(made, parts=replace(made.parts, make_reconstructor=make_reconstructor))


class _WithoutMemory:
    def __init__(self, real: Any, sign: Path) -> None:
        self._real, self._sign = real, sign

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def step(self, *args: Any, **options: Any) -> Estimate | None:
        return self._without(self._real.step, *args, **options)

    def _without(self, do: Callable[..., Estimate | None], *args: Any, **options: Any) -> Estimate | None:
        """Do something where a GPU's memory is taken, once for each sign; without a GPU it fails all the same."""
        if not self._sign.exists():
            return do(*args, **options)
        import torch

        self._sign.unlink()
        if not torch.cuda.is_available():
            raise torch.OutOfMemoryError("CUDA out of memory: the benchmark says so")
        taken = _all_memory()
        try:
            return do(*args, **options)
        finally:
            del taken


class _QuickWithoutMemory(_WithoutMemory):
    def read_quickly(self, budget_s: float) -> Estimate | None:
        return self._without(self._real.read_quickly, budget_s)


def _all_memory() -> list[Any]:
    """Take the memory of the GPU that is the current one, but for less than a piece that PyTorch asks for."""
    import torch

    torch.cuda.empty_cache()
    taken, size = [], torch.cuda.mem_get_info()[0]
    while size >= SMALLEST:
        try:
            taken.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        except torch.OutOfMemoryError:
            size //= 2
    return taken
