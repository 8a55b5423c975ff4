"""Layer normalisation over the channels of an image, for a GPU with Triton; no gradients.

PyTorch's kernel gives each pixel a whole block of threads, which for some tens of channels is mostly
idle: on an H200 it took 40 % of the U-Net's time.
"""
# Triton comes with PyTorch's builds for CUDA only, and its kernels are a language of their own.
# mypy: disable-error-code="import-not-found, untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

# Values that a program normalises.
TILE = 4096


@triton.jit
def _normalise(
    image, weight, bias, out, pixels, eps,
    channels: tl.constexpr, columns: tl.constexpr, rows: tl.constexpr,
):  # fmt: skip
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


def channel_norm(image: Tensor, norm: nn.LayerNorm) -> Tensor:
    """`norm` over the channels of an image (B, C, Y, X), computed in float32, in the image's type."""
    image = image.contiguous(memory_format=torch.channels_last)
    out = torch.empty_like(image)
    batch, channels, height, width = image.shape
    pixels, columns = batch * height * width, triton.next_power_of_2(channels)
    rows = max(1, TILE // columns)
    # Kernels start on the current device, which need not be the tensors'.
    with torch.cuda.device(image.device):
        _normalise[(triton.cdiv(pixels, rows),)](
            image, norm.weight, norm.bias, out, pixels, norm.eps, channels, columns, rows
        )
    return out
