"""Layer normalisation over the channels of an image, with its gradient, for a GPU with Triton.

PyTorch's kernel gives each pixel a whole block of threads, which for some tens of channels is mostly
idle: on an H200 it took 40 % of the U-Net's time.
"""
# Triton comes with PyTorch's builds for CUDA only, and its kernels are a language of their own.
# mypy: disable-error-code="import-not-found, untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

# Values that a program normalises at a time.
TILE = 4096
# Programs that share the sums over all pixels: several for each of the hundred-odd multiprocessors of a large GPU.
SUMMING = 1024


@triton.jit
def _normalise(
    image,
    weight,
    bias,
    out,
    pixels,
    eps,
    channels: tl.constexpr,
    columns: tl.constexpr,
    rows: tl.constexpr,
):
    pixel = tl.program_id(0).to(tl.int64) * rows + tl.arange(0, rows)
    channel = tl.arange(0, columns)
    known = channel < channels
    inside = (pixel[:, None] < pixels) & known[None, :]
    at = pixel[:, None] * channels + channel[None, :]
    values = tl.load(image + at, mask=inside, other=0).to(tl.float32)
    mean = tl.sum(values, axis=1) / channels
    centred = tl.where(known[None, :], values - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, axis=1) / channels
    scale = tl.load(weight + channel, mask=known, other=0)
    offset = tl.load(bias + channel, mask=known, other=0)
    result = centred * tl.rsqrt(variance + eps)[:, None] * scale[None, :] + offset[None, :]
    tl.store(out + at, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gradients(
    image, gradient, weight, change, weight_sums, bias_sums, pixels, eps, tiles,
    channels: tl.constexpr, columns: tl.constexpr, rows: tl.constexpr,
):  # fmt: skip
    """With g = gradient * weight and y the normalised image: (g - mean(g) - y mean(g y)) / deviation, by pixel."""
    program = tl.program_id(0)
    channel = tl.arange(0, columns)
    known = channel < channels
    scale = tl.load(weight + channel, mask=known, other=0)
    weight_sum = tl.zeros([columns], tl.float32)
    bias_sum = tl.zeros([columns], tl.float32)
    for tile in range(tiles):
        pixel = (program.to(tl.int64) * tiles + tile) * rows + tl.arange(0, rows)
        inside = (pixel[:, None] < pixels) & known[None, :]
        at = pixel[:, None] * channels + channel[None, :]
        values = tl.load(image + at, mask=inside, other=0).to(tl.float32)
        asked = tl.load(gradient + at, mask=inside, other=0).to(tl.float32)
        mean = tl.sum(values, axis=1) / channels
        centred = tl.where(known[None, :], values - mean[:, None], 0.0)
        inverse = tl.rsqrt(tl.sum(centred * centred, axis=1) / channels + eps)
        normal = centred * inverse[:, None]
        scaled = asked * scale[None, :]
        shift = tl.sum(scaled, axis=1) / channels
        along = tl.sum(scaled * normal, axis=1) / channels
        result = (scaled - shift[:, None] - normal * along[:, None]) * inverse[:, None]
        tl.store(change + at, result.to(change.dtype.element_ty), mask=inside)
        weight_sum += tl.sum(asked * normal, axis=0)
        bias_sum += tl.sum(asked, axis=0)
    tl.store(weight_sums + program * channels + channel, weight_sum, mask=known)
    tl.store(bias_sums + program * channels + channel, bias_sum, mask=known)


def channel_norm(image: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Normalise over the channels of an image, computed in float32.

    Parameters
    ----------
    image : Tensor, shape (B, C, Y, X)
        On a GPU.
    norm : LayerNorm
        Over C; its weight and bias.

    Returns
    -------
    Tensor, shape (B, C, Y, X)
        In the image's type.
    """
    result: Tensor = _ChannelNorm.apply(image, norm.weight, norm.bias, norm.eps)
    return result


class _ChannelNorm(torch.autograd.Function):
    @staticmethod
    def forward(image: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        image = image.contiguous(memory_format=torch.channels_last)
        out = torch.empty_like(image)
        pixels, channels, columns, rows = _sizes(image)
        # Kernels start on the current device, which need not be the tensors'.
        with torch.cuda.device_of(image):
            _normalise[(triton.cdiv(pixels, rows),)](image, weight, bias, out, pixels, eps, channels, columns, rows)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, float], output: Tensor) -> None:
        image, weight, _, ctx.eps = inputs
        ctx.save_for_backward(image, weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        image, weight = ctx.saved_tensors
        image = image.contiguous(memory_format=torch.channels_last)
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        change = torch.empty_like(image)
        pixels, channels, columns, rows = _sizes(image)
        programs = min(SUMMING, triton.cdiv(pixels, rows))
        tiles = triton.cdiv(triton.cdiv(pixels, rows), programs)
        sums = torch.empty(2, programs, channels, device=image.device)
        with torch.cuda.device_of(image):
            _gradients[(programs,)](
                image, gradient, weight, change, sums[0], sums[1], pixels, ctx.eps, tiles, channels, columns, rows
            )
        weight_sum, bias_sum = sums.sum(dim=1)
        return change, weight_sum, bias_sum, None


def _sizes(image: Tensor) -> tuple[int, int, int, int]:
    """Give pixels, channels, channels filled up to a power of two, and pixels that a program takes at a time."""
    batch, channels, height, width = image.shape
    columns = triton.next_power_of_2(channels)
    return batch * height * width, channels, columns, max(1, TILE // columns)
