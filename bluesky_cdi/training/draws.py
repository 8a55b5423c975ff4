"""Seeded random numbers of a training run."""

from __future__ import annotations

import torch
from torch import Tensor


class Draws:
    """Draw random numbers from two generators: one for each scene's own, one for what decides about whole batches.

    Parameters
    ----------
    device : torch.device
        Where the numbers of scenes are made.
    seed : int
        Seed of what is drawn for each scene.
    decisions : int, optional
        Seed of what decides about whole batches; default: `seed`.
    """

    def __init__(self, device: torch.device, seed: int, decisions: int | None = None) -> None:
        self.device = device
        self._generator = torch.Generator(device=device)
        # What decides about a whole batch is drawn beside the GPU, which so is never waited for.
        self._decisions = torch.Generator()
        self.reseed(seed, decisions)

    def reseed(self, seed: int, decisions: int | None = None) -> None:
        """Begin another sequence.

        Parameters
        ----------
        seed : int
            Seed of what is drawn for each scene.
        decisions : int, optional
            Seed of what decides about whole batches; default: `seed`.
        """
        self._generator.manual_seed(seed)
        self._decisions.manual_seed(seed if decisions is None else decisions)

    def state(self) -> tuple[Tensor, Tensor]:
        """Give where both sequences are, for `restore`."""
        return self._generator.get_state(), self._decisions.get_state()

    def restore(self, state: tuple[Tensor, Tensor]) -> None:
        """Go back, to draw the same numbers again.

        Parameters
        ----------
        state : tuple of Tensor
            As `state` gave it.
        """
        self._generator.set_state(state[0])
        self._decisions.set_state(state[1])

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Draw uniform random numbers.

        Parameters
        ----------
        *shape : int
            Of the result.
        low, high : float
            Bounds.
        """
        return low + (high - low) * torch.rand(*shape, device=self.device, generator=self._generator)

    def normal(self, *shape: int) -> Tensor:
        """Draw normal random numbers."""
        return torch.randn(*shape, device=self.device, generator=self._generator)

    def poisson(self, expected: Tensor) -> Tensor:
        """Draw counts.

        Parameters
        ----------
        expected : Tensor
            Their means.
        """
        return torch.poisson(expected, generator=self._generator)

    def between(self, low: float, high: float) -> float:
        """Draw a uniform random number that decides about a whole batch.

        Parameters
        ----------
        low, high : float
            Bounds.
        """
        return low + (high - low) * float(torch.rand((), generator=self._decisions))

    def whole(self, low: int, high: int) -> int:
        """Draw a whole number, both ends included.

        Parameters
        ----------
        low, high : int
            Least and most.
        """
        return int(torch.randint(low, high + 1, (), generator=self._decisions))

    def chance(self, probability: float) -> bool:
        """Draw a yes or no."""
        return self.between(0, 1) < probability

    def error(self, most: float) -> float:
        """Draw the size of an error of a whole batch: half of them have none, the others up to `most`."""
        return max(0.0, self.between(-most, most))
