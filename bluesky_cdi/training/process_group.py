"""One process or several that train the same network together."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class ProcessGroup:
    """One process among those that train.

    Parameters
    ----------
    device : torch.device
        Of this process.
    rank, size : int
        Its number from 0, and how many there are.
    """

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process validates, reports and writes."""
        return self.rank == 0

    def agreed(self, value: float) -> float:
        """Give the leader's value, in every process."""
        if self.size == 1:
            return value
        agreed = torch.tensor([value], dtype=torch.float64, device=self.device)
        torch.distributed.broadcast(agreed, src=0)
        return float(agreed)

    def shared(self, module: nn.Module) -> nn.Module:
        """Wrap a module so that gradients are averaged over the processes."""
        if self.size == 1:
            return module
        return nn.parallel.DistributedDataParallel(module, [self.device] if self.device.type == "cuda" else None)


@contextmanager
def joined(device: str = "auto") -> Iterator[ProcessGroup]:
    """Join the processes that ``torchrun`` started; a process group of one without it.

    Parameters
    ----------
    device : str
        ``auto`` takes a GPU where there is one; with several processes each takes its own.
    """
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ProcessGroup(torch.device(name))
        return
    chosen = torch.device(f"cuda:{os.environ['LOCAL_RANK']}") if name.startswith("cuda") else torch.device(name)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    torch.distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield ProcessGroup(chosen, int(os.environ["RANK"]), size)
    finally:
        torch.distributed.destroy_process_group()
