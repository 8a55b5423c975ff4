"""The step that all frames of a scan together ask of an object, made again and again.

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


class LitFrames:
    """Frames and what lights them, for steps of one object after another.

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
    """

    def __init__(self, probe: Tensor, data: Diffraction, chunk: int | None = None, room: int | None = None) -> None:
        self._probe = probe
        self._data = data
        self._parts = list(data.chunks(chunk or frames_at_once(probe)))
        self._room = room_for_probes(probe.device) if room is None else room
        self._kept: list[Tensor] = []
        self._light: Tensor | None = None

    def step(self, canvas: Tensor) -> tuple[Tensor, Tensor]:
        """Object change that all frames together ask for, and the illumination behind it.

        Parameters
        ----------
        canvas : Tensor, shape (B, Y, X), complex

        Returns
        -------
        numerator : Tensor, shape (B, Y, X), complex
        illumination : Tensor, shape (B, Y, X)
            Photons per pixel.
        """
        numerator = torch.zeros(self._data.canvas_shape, dtype=canvas.dtype, device=canvas.device)
        light = torch.zeros_like(numerator.real) if self._light is None else self._light
        add = _add_step_fused if _fuses(canvas, self._probe, self._data) else _add_step
        for part, probes in self._lit():
            numerator, light = add(numerator, light, canvas, probes, part, self._light is None)
        self._light = light
        return numerator, light

    def _lit(self) -> Iterator[tuple[Diffraction, Tensor]]:
        """Some frames at a time with their probes, (n, M, N, N)."""
        for number, part in enumerate(self._parts):
            if number < len(self._kept):
                yield part, self._kept[number]
                continue
            probes = part.probes(self._probe)
            if number == len(self._kept) and probes.nbytes <= self._room:
                self._kept.append(probes)
                self._room -= probes.nbytes
            yield part, probes


def frames_at_once(probe: Tensor) -> int:
    """Frames that a probe's device computes at a time: (B, M, N, N) to a number."""
    allowed = GPU_WAVE_BYTES if probe.is_cuda else CPU_WAVE_BYTES
    return max(1, allowed // (probe[0].numel() * probe.element_size()))


def room_for_probes(device: torch.device) -> int:
    """Bytes of shifted probes that are kept on a device."""
    if device.type != "cuda":
        return CPU_KEPT_BYTES
    return int(GPU_KEPT_SHARE * torch.cuda.get_device_properties(device).total_memory)


def canvas_step(canvas: Tensor, probe: Tensor, data: Diffraction, chunk: int | None = None) -> tuple[Tensor, Tensor]:
    """Object change that all frames together ask for, and the illumination behind it.

    Parameters
    ----------
    canvas : Tensor, shape (B, Y, X), complex
    probe : Tensor, shape (B, M, N, N), complex
    data : Diffraction
    chunk : int, optional
        Frames computed at a time, which bounds memory; default: `frames_at_once`.

    Returns
    -------
    numerator : Tensor, shape (B, Y, X), complex
    illumination : Tensor, shape (B, Y, X)
        Photons per pixel.
    """
    return LitFrames(probe, data, chunk, room=0).step(canvas)


@cache
def has_triton() -> bool:
    """Whether the GPU here runs kernels written with Triton: it is installed, and one step works."""
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
    numerator: Tensor, light: Tensor, canvas: Tensor, probes: Tensor, part: Diffraction, with_light: bool
) -> tuple[Tensor, Tensor]:
    """Numerator, and if wanted illumination, with those of some frames added."""
    wave_step, _ = part.wave_step(probes, part.patches(canvas))
    change = (probes.conj() * wave_step).sum(dim=1)  # (n, N, N)
    numerator = numerator + accumulate(change, part.corner, part.canvas_shape, part.scene)
    if with_light:
        light = light + accumulate(intensity(probes), part.corner, part.canvas_shape, part.scene)
    return numerator, light


def _add_step_fused(
    numerator: Tensor, light: Tensor, canvas: Tensor, probes: Tensor, part: Diffraction, with_light: bool
) -> tuple[Tensor, Tensor]:
    """`_add_step`, in place, with the kernels of `fused`."""
    from bluesky_cdi.physics.fused import add_step

    add_step(numerator, light if with_light else None, canvas, probes, part, STEP_FLOOR)
    return numerator, light


def _fuses(canvas: Tensor, probe: Tensor, data: Diffraction) -> bool:
    """Whether the fused kernels compute this step."""
    inputs = (canvas, probe, data.counts, data.shift_px)
    return (
        canvas.is_cuda
        and canvas.dtype == probe.dtype == torch.complex64
        and data.counts.dtype == torch.float32
        and data.propagator is FAR_FIELD
        and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs))
        and has_triton()
    )
