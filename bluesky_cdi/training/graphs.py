"""U-Nets of a training run as CUDA graphs.

A training step starts some thousand small kernels, which on an H100 took Python four times as long as the GPU needed
to compute them (119 ms against 28). A graph starts all kernels of one U-Net, forward or backward, at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from bluesky_cdi.models.unrolled import UNet, UnrolledNet, padding
from bluesky_cdi.training.stream import SceneShape


class _InBf16(nn.Module):
    """A U-Net with its automatic casts, which a graph must not take from a cache."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast("cuda", dtype=torch.bfloat16, cache_enabled=False):
            found: tuple[Tensor, Tensor] = self.unet(image)
            return found


def record_graphs(net: UnrolledNet, shapes: Sequence[SceneShape], device: torch.device) -> None:
    """Record the U-Nets of a network for batches of some shapes; `run_unet` then uses them where gradients are asked.

    Within a step each U-Net may run once, in the order of the stages with the critic last: the graphs of a
    shape share their memory.

    Parameters
    ----------
    net : UnrolledNet
        On the device.
    shapes : sequence of SceneShape
        Numbers of scenes and grids of the batches.
    device : torch.device
        A CUDA device.
    """
    # Gradients are summed on the stream that recorded, not on that of the step; PyTorch synchronises the two.
    if hasattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch"):
        torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
    unets = [cast(UNet, stage) for stage in net.stages] + [net.critic]
    for shape in shapes:
        height, width = (shape.grid_px + more for more in padding(net.critic, shape.grid_px, shape.grid_px))
        images = []
        for unet in unets:
            image = torch.zeros(shape.scenes, unet.inputs, height, width, dtype=torch.bfloat16, device=device)
            image = image.contiguous(memory_format=torch.channels_last)
            # What the critic looks at depends on no parameter, and what the first U-Net does only on the length of the
            # steps before it; where a pass begins has no gradient either.
            learned = unet is not net.critic and (unet is not unets[0] or net.config.steps > 1)
            images.append((image.requires_grad_(learned),))
        graphed = torch.cuda.make_graphed_callables(tuple(_InBf16(unet) for unet in unets), tuple(images))
        for unet, call in zip(unets, graphed, strict=True):
            unet.graphs[shape.scenes, height, width] = cast(Callable[[Tensor], tuple[Tensor, Tensor]], call)
