"""Self-attention between the tokens of a grid, with rotary positions in two dimensions.

Convolutions carry what one end of the object knows to the other only over many layers; attention does it in one.
Positions enter as rotations of queries and keys (Su et al., Neurocomputing 568, 127063 (2024)), half of the channels
for rows and half for columns, so that only displacements count and any size of grid goes in. A grid larger than a
window is cut into windows, each of which attends within itself (Liu et al., ICCV 2021, p. 9992): the cost then grows
like the number of tokens, not like its square.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Most tokens along a side of a window: 512 pixels of the object at the coarsest level of the networks that are shipped.
WINDOW = 32
# Channels of a head; half of them turn with the row, half with the column.
HEAD_CHANNELS = 16
# Turns per token of a head's fastest and slowest channels, radians.
FASTEST, SLOWEST = 1.0, 0.01


class GridAttention(nn.Module):
    """Attention and a perceptron, each added to what comes in; untrained it changes nothing.

    Parameters
    ----------
    channels : int
        A multiple of `HEAD_CHANNELS`.

    Raises
    ------
    ValueError
        If `channels` is no such multiple.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels % HEAD_CHANNELS:
            raise ValueError(
                f"attention needs a multiple of {HEAD_CHANNELS} channels at the coarsest level; got {channels}"
            )
        self.heads = channels // HEAD_CHANNELS
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.mix = nn.Linear(channels, channels)
        self.second_norm = nn.LayerNorm(channels)
        self.widen = nn.Linear(channels, 3 * channels)
        self.narrow = nn.Linear(3 * channels, channels)
        for last in (self.mix, self.narrow):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Attend to the whole grid: (B, C, Y, X) to the same shape."""
        tokens = x.permute(0, 2, 3, 1)  # (B, Y, X, C)
        tokens = tokens + self.mix(self._attended(self.qkv(self.norm(tokens))))
        tokens = tokens + self.narrow(F.gelu(self.widen(self.second_norm(tokens))))
        found: Tensor = tokens.permute(0, 3, 1, 2).to(x.dtype)
        return found

    def _attended(self, qkv: Tensor) -> Tensor:
        """Attend window by window: (B, Y, X, 3 C) to (B, Y, X, C)."""
        height, width = qkv.shape[1:3]
        rows, columns = window_side(height), window_side(width)
        below, right = -height % rows, -width % columns
        windows = _cut(F.pad(qkv, (0, 0, 0, right, 0, below)), rows, columns)  # (windows, n, 3 C)
        q, k, v = (
            part.view(*part.shape[:2], self.heads, -1).transpose(1, 2)
            for part in windows.view(*windows.shape[:2], 3, -1).unbind(dim=2)
        )
        q, k = (rotated(each, rows, columns) for each in (q, k))
        mask = _tokens_there(qkv, rows, columns) if below or right else None
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        return _joined(found, len(qkv), height + below, width + right, rows, columns)[:, :height, :width]


def window_side(tokens: int) -> int:
    """Find the side of windows of nearly one size that cover a side of a grid, at most `WINDOW`."""
    return -(-tokens // -(-tokens // WINDOW))


def rotated(heads: Tensor, rows: int, columns: int) -> Tensor:
    """Turn channels by the position of their token.

    Parameters
    ----------
    heads : Tensor, shape (windows, heads, rows * columns, HEAD_CHANNELS)
        Queries or keys.
    rows, columns : int
        Of a window.

    Returns
    -------
    Tensor
        Of the same shape: products of a turned query with a turned key depend on how far apart they are alone.
    """
    quarter = heads.shape[-1] // 4
    places = torch.arange(rows * columns, device=heads.device)
    speeds = FASTEST * torch.exp(math.log(SLOWEST / FASTEST) * torch.linspace(0, 1, quarter, device=heads.device))
    by_row = torch.div(places, columns, rounding_mode="floor")[:, None] * speeds  # (n, quarter)
    by_column = (places % columns)[:, None] * speeds
    a, b, c, d = heads.float().chunk(4, dim=-1)
    turned = (
        a * by_row.cos() - b * by_row.sin(),
        a * by_row.sin() + b * by_row.cos(),
        c * by_column.cos() - d * by_column.sin(),
        c * by_column.sin() + d * by_column.cos(),
    )
    return torch.cat(turned, dim=-1).to(heads.dtype)


def _cut(image: Tensor, rows: int, columns: int) -> Tensor:
    """Cut (B, Y, X, C) into (B windows, rows columns, C)."""
    batch, height, width, channels = image.shape
    grid = image.reshape(batch, height // rows, rows, width // columns, columns, channels)
    return grid.transpose(2, 3).reshape(-1, rows * columns, channels)


def _joined(windows: Tensor, scenes: int, height: int, width: int, rows: int, columns: int) -> Tensor:
    """Undo `_cut`: (B windows, rows columns, C) to (B, Y, X, C)."""
    grid = windows.reshape(scenes, height // rows, width // columns, rows, columns, -1)
    return grid.transpose(2, 3).reshape(scenes, height, width, -1)


def _tokens_there(qkv: Tensor, rows: int, columns: int) -> Tensor:
    """Mark the tokens of each window that are of the grid, not of what fills the last ones up: (B windows, 1, 1, n)."""
    batch, height, width = qkv.shape[:3]
    there = torch.ones(batch, height, width, 1, dtype=torch.bool, device=qkv.device)
    return _cut(F.pad(there, (0, 0, 0, -width % columns, 0, -height % rows)), rows, columns)[:, None, None, :, 0]
