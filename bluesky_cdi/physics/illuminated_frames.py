"""Object steps of all frames of a scan together, for one object after another.

What doesn't depend on the object, shifted probes and illumination, is computed once; on a GPU with Triton the
rest takes three passes over memory (`fused`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from bluesky_cdi.physics.forward import STEP_FLOOR, Diffraction, accumulate, intensity
from bluesky_cdi.physics.propagators import FAR_FIELD

logger = logging.getLogger(__name__)

# Waves computed at a time: on a CPU 32 frames of 128x128, which stay near its caches; on a GPU 1024,
# beyond which an H200 gains nothing.
CPU_WAVE_BYTES, GPU_WAVE_BYTES = 2**22, 2**27
# Shifted probes kept from step to step: at most 1 GiB beside a CPU, an eighth of a GPU's memory.
CPU_KEPT_BYTES, GPU_KEPT_SHARE = 2**30, 1 / 8


class IlluminatedFrames:
    """Frames with their probes and illumination, for steps of one object after another.

    The frames' shifted probes and the illumination don't depend on the object: the first step computes
    them. Probes are kept for later steps as far as there is room, and computed again beyond that.
    All steps must be made with gradients, or all without.

    Parameters
    ----------
    probe : Tensor, shape (B, M, N, N), complex
    data : Diffraction
    chunk : int, optional
        Frames computed at a time, which bounds memory; default: `frames_at_once`.
    room : int, optional
        Bytes of probes to keep; default: `room_for_probes`.
    subsets : int
        Parts that `step_of_subset` goes through: every so manieth frame each.
    """

    def __init__(
        self,
        probe: Tensor,
        data: Diffraction,
        chunk: int | None = None,
        room: int | None = None,
        subsets: int = 1,
    ) -> None:
        self._probe = probe
        self._data = data
        chunk = chunk or frames_at_once(probe)
        self._subsets = [list(data[first::subsets].chunks(chunk)) for first in range(subsets)]
        self._room = room_for_probes(probe.device) if room is None else room
        # By subset and part of it.
        self._kept: dict[tuple[int, int], Tensor] = {}
        self._illumination: dict[int, Tensor] = {}

    @property
    def subsets(self) -> int:
        """How many parts there are."""
        return len(self._subsets)

    def step(self, obj: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the object change that all frames together ask for, and the illumination behind it.

        Parameters
        ----------
        obj : Tensor, shape (B, Y, X), complex
            Transmission of each scene.

        Returns
        -------
        numerator : Tensor, shape (B, Y, X), complex
            ``sum conj(probe) * step``.
        illumination : Tensor, shape (B, Y, X)
            ``sum |probe|^2``, photons per pixel.
        """
        numerator, illumination = self.step_of_subset(obj, 0)
        for subset in range(1, self.subsets):
            further = self.step_of_subset(obj, subset)
            numerator, illumination = numerator + further[0], illumination + further[1]
        return numerator, illumination

    def step_of_subset(self, obj: Tensor, subset: int) -> tuple[Tensor, Tensor]:
        """Compute the object change that a part of the frames asks for, and the illumination behind it.

        Parameters
        ----------
        obj : Tensor, shape (B, Y, X), complex
            Transmission of each scene.
        subset : int
            Number of the part.

        Returns
        -------
        numerator, illumination : Tensor, shape (B, Y, X)
            As of `step`.
        """
        numerator = torch.zeros(self._data.object_shape, dtype=obj.dtype, device=obj.device)
        known = self._illumination.get(subset)
        illumination = torch.zeros_like(numerator.real) if known is None else known
        add = _add_step_fused if _fuses(obj, self._probe, self._data) else _add_step
        for part, probes in self._with_probes(subset):
            numerator, illumination = add(numerator, illumination, obj, probes, part, known is None)
        self._illumination[subset] = illumination
        return numerator, illumination

    def _with_probes(self, subset: int) -> Iterator[tuple[Diffraction, Tensor]]:
        """Yield some frames of a subset at a time with their probes, (n, M, N, N)."""
        for number, part in enumerate(self._subsets[subset]):
            probes = self._kept.get((subset, number))
            if probes is None:
                probes = part.probes(self._probe)
                if probes.nbytes <= self._room:
                    self._kept[subset, number] = probes
                    self._room -= probes.nbytes
            yield part, probes


def frames_at_once(probe: Tensor) -> int:
    """Return how many frames the device of a probe (B, M, N, N) computes at a time."""
    allowed = GPU_WAVE_BYTES if probe.is_cuda else CPU_WAVE_BYTES
    return max(1, allowed // (probe[0].numel() * probe.element_size()))


def room_for_probes(device: torch.device) -> int:
    """Return how many bytes of shifted probes are kept on a device."""
    if device.type != "cuda":
        return CPU_KEPT_BYTES
    return int(GPU_KEPT_SHARE * torch.cuda.get_device_properties(device).total_memory)


def object_step(obj: Tensor, probe: Tensor, data: Diffraction, chunk: int | None = None) -> tuple[Tensor, Tensor]:
    """Compute the object change that all frames together ask for, and the illumination behind it.

    Parameters
    ----------
    obj : Tensor, shape (B, Y, X), complex
        Transmission of each scene.
    probe : Tensor, shape (B, M, N, N), complex
        Modes of each scene, in sqrt(photons).
    data : Diffraction
        The frames and where they lie.
    chunk : int, optional
        Frames computed at a time, which bounds memory; default: `frames_at_once`.

    Returns
    -------
    numerator : Tensor, shape (B, Y, X), complex
        ``sum conj(probe) * step``.
    illumination : Tensor, shape (B, Y, X)
        ``sum |probe|^2``, photons per pixel.
    """
    return IlluminatedFrames(probe, data, chunk, room=0).step(obj)


@cache
def has_triton() -> bool:
    """Test whether the GPU here runs kernels written with Triton: it is installed, and one step works."""
    if find_spec("triton") is None:
        return False
    try:
        from bluesky_cdi.physics.fused import try_kernels

        try_kernels()
    # Triton and the compilers that it calls fail in ways of their own; the way through tensors is always there.
    except Exception as err:  # noqa: BLE001 (see above)
        logger.warning("Triton is installed but doesn't run here, which makes networks about half as fast: %s", err)
        return False
    return True


def _add_step(
    numerator: Tensor, illumination: Tensor, obj: Tensor, probes: Tensor, part: Diffraction, with_illumination: bool
) -> tuple[Tensor, Tensor]:
    """Add the numerator of some frames, and their illumination if it is wanted."""
    exit_wave_step, _ = part.exit_wave_step(probes, part.patches(obj))
    change = (probes.conj() * exit_wave_step).sum(dim=1)  # (n, N, N)
    numerator = numerator + accumulate(change, part.corner, part.object_shape, part.scene)
    if with_illumination:
        illumination = illumination + accumulate(intensity(probes), part.corner, part.object_shape, part.scene)
    return numerator, illumination


def _add_step_fused(
    numerator: Tensor, illumination: Tensor, obj: Tensor, probes: Tensor, part: Diffraction, with_illumination: bool
) -> tuple[Tensor, Tensor]:
    """Do what `_add_step` does, in place, with the kernels of `fused`."""
    from bluesky_cdi.physics.fused import add_step

    add_step(numerator, illumination if with_illumination else None, obj, probes, part, STEP_FLOOR)
    return numerator, illumination


def _fuses(obj: Tensor, probe: Tensor, data: Diffraction) -> bool:
    """Test whether the fused kernels compute this step."""
    inputs = (obj, probe, data.counts, data.shift_px)
    return (
        obj.is_cuda
        and obj.dtype == probe.dtype == torch.complex64
        and data.counts.dtype == torch.float32
        and data.propagator is FAR_FIELD
        and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs))
        and has_triton()
    )
