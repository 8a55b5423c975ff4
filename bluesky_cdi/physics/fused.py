"""`illuminated_frames.object_step` in three memory passes beside its FFT pair, for a GPU with Triton; no gradients.

Memory traffic takes most of the step's time: 1.9 µs for a frame of 128x128 on an H200 where every
operation on tensors reads and writes its waves, 0.7 µs with these kernels, of which the FFTs take 0.4. The formulas are
those of `forward.modulus_step` (amplitude) and `forward.object_step` in the far field. The FFTs are not
normalised: what that leaves out is in the factor on the far field.
"""
# Triton comes with PyTorch's builds for CUDA only, and its kernels are a language of their own.
# mypy: disable-error-code="import-not-found, untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from bluesky_cdi.physics.forward import Diffraction

# Pixels of one frame that a program computes; 256 to 2048 take the same time on an H200.
BLOCK = 1024


@triton.jit
def _parts(value):
    """Split complex64, read as int64, into real and imaginary part."""
    real = value.to(tl.int32).to(tl.float32, bitcast=True)
    imaginary = (value >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    return real, imaginary


@triton.jit
def _joined(real, imaginary):
    """Join real and imaginary part to complex64, read as int64: the inverse of `_parts`."""
    low = real.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF
    high = imaginary.to(tl.int32, bitcast=True).to(tl.int64) << 32
    return low | high


@triton.jit
def _exit_waves(waves, obj, probes, first, size, width, modes: tl.constexpr, block: tl.constexpr):
    """Multiply probes (n, M, N, N) by each frame's patch of the object, which begins at pixel `first` (n,)."""
    frame = tl.program_id(0).to(tl.int64)
    pixel = tl.program_id(1) * block + tl.arange(0, block)
    inside = pixel < size * size
    place = tl.load(first + frame) + (pixel // size) * width + pixel % size
    patch_r, patch_i = _parts(tl.load(obj + place, mask=inside, other=0))
    for mode in range(modes):
        at = (frame * modes + mode) * size * size + pixel
        probe_r, probe_i = _parts(tl.load(probes + at, mask=inside, other=0))
        product = _joined(probe_r * patch_r - probe_i * patch_i, probe_r * patch_i + probe_i * patch_r)
        tl.store(waves + at, product, mask=inside)


@triton.jit
def _towards_counts(
    waves, counts, valid, size, background, floor, saturation,
    modes: tl.constexpr, has_mask: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Multiply far-field waves (n, M, N, N), FFT not normalised, by ``(sqrt(counts / rate) - 1) / N^2``."""
    frame = tl.program_id(0).to(tl.int64)
    pixel = tl.program_id(1) * block + tl.arange(0, block)
    area = size * size
    inside = pixel < area
    total = tl.zeros([block], tl.float32)
    for mode in range(modes):
        real, imaginary = _parts(tl.load(waves + (frame * modes + mode) * area + pixel, mask=inside, other=0))
        total += real * real + imaginary * imaginary
    counted = tl.load(counts + frame * area + pixel, mask=inside, other=0)
    factor = tl.sqrt(counted) * tl.rsqrt(total / area + background + floor) - 1
    factor = tl.where(counted < saturation, factor, 0.0) / area
    if has_mask:
        factor = tl.where(tl.load(valid + pixel, mask=inside, other=0) != 0, factor, 0.0)
    for mode in range(modes):
        at = (frame * modes + mode) * area + pixel
        real, imaginary = _parts(tl.load(waves + at, mask=inside, other=0))
        tl.store(waves + at, _joined(real * factor, imaginary * factor), mask=inside)


@triton.jit
def _stitch(
    numerator, illumination, waves, probes, first, size, width,
    modes: tl.constexpr, has_illumination: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Add ``sum_m conj(probe) wave`` to the numerator, pairs of float32; ``sum_m |probe|^2`` to the illumination."""
    frame = tl.program_id(0).to(tl.int64)
    pixel = tl.program_id(1) * block + tl.arange(0, block)
    inside = pixel < size * size
    place = tl.load(first + frame) + (pixel // size) * width + pixel % size
    sum_r = tl.zeros([block], tl.float32)
    sum_i = tl.zeros([block], tl.float32)
    bright = tl.zeros([block], tl.float32)
    for mode in range(modes):
        at = (frame * modes + mode) * size * size + pixel
        probe_r, probe_i = _parts(tl.load(probes + at, mask=inside, other=0))
        wave_r, wave_i = _parts(tl.load(waves + at, mask=inside, other=0))
        sum_r += probe_r * wave_r + probe_i * wave_i
        sum_i += probe_r * wave_i - probe_i * wave_r
        bright += probe_r * probe_r + probe_i * probe_i
    tl.atomic_add(numerator + 2 * place, sum_r, mask=inside, sem="relaxed")
    tl.atomic_add(numerator + 2 * place + 1, sum_i, mask=inside, sem="relaxed")
    if has_illumination:
        tl.atomic_add(illumination + place, bright, mask=inside, sem="relaxed")


def add_step(
    numerator: Tensor, illumination: Tensor | None, obj: Tensor, probes: Tensor, data: Diffraction, floor: float
) -> None:
    """Add the object change that frames ask for to `numerator`, and their illumination to `illumination`, in place.

    Parameters
    ----------
    numerator : Tensor, shape (B, Y, X), complex64
        On a CUDA device, like all others.
    illumination : Tensor, shape (B, Y, X), float32, or None
        None: it is not wanted.
    obj : Tensor, shape (B, Y, X), complex64
        Transmission of each scene.
    probes : Tensor, shape (n, M, N, N), complex64
        Each frame's own.
    data : Diffraction
        The same frames, far field.
    floor : float
        Photons added to the rate where a step divides by it.
    """
    modes, size = probes.shape[1:3]
    height, width = data.object_shape[1:]
    first = data.corner[:, 0] * width + data.corner[:, 1]
    if data.scene is not None:
        first = first + data.scene * (height * width)
    counts, illuminating = data.counts.contiguous(), _bits(probes)
    grid = (len(data), triton.cdiv(size * size, BLOCK))
    valid = counts if data.mask is None else data.mask.contiguous().view(torch.uint8)
    saturation = math.inf if data.saturation is None else data.saturation
    pairs = torch.view_as_real(numerator)
    # Kernels start on the current device, which need not be the tensors'.
    with torch.cuda.device(obj.device):
        waves = torch.empty_like(probes, memory_format=torch.contiguous_format)
        _exit_waves[grid](_bits(waves), _bits(obj), illuminating, first, size, width, modes, BLOCK)
        far = torch.fft.fft2(waves, norm="backward")
        _towards_counts[grid](
            _bits(far), counts, valid, size, float(data.background), floor, saturation, modes,
            data.mask is not None, BLOCK,
        )  # fmt: skip
        waves = torch.fft.ifft2(far, norm="forward")
        _stitch[grid](
            pairs, pairs if illumination is None else illumination, _bits(waves), illuminating, first, size, width,
            modes, illumination is not None, BLOCK,
        )  # fmt: skip


def try_kernels() -> None:
    """Compile the kernels and step one dark frame on the current GPU; raises whatever Triton raises."""
    from bluesky_cdi.physics.forward import Diffraction

    size = 16
    obj = torch.ones(1, size, size, dtype=torch.complex64, device="cuda")
    here = torch.zeros(1, 2, dtype=torch.int64, device="cuda")
    data = Diffraction(torch.zeros(1, size, size, device="cuda"), here, here.float(), (1, size, size))
    with torch.no_grad():
        add_step(torch.zeros_like(obj), None, obj, obj[None], data, 1.0)
        torch.cuda.synchronize()


def _bits(field: Tensor) -> Tensor:
    """View complex64 as int64, which a kernel reads whole."""
    return field.resolve_conj().contiguous().view(torch.int64)
