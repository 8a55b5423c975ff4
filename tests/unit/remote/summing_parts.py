"""What a worker is made of whose image tells all frames exactly, whatever steps they came in."""

from dataclasses import replace

import numpy as np

from bluesky_cdi.remote.setup import live_setup


def setup(arguments):
    made = live_setup(arguments)
    real = made.parts.make_reconstructor
    return replace(made, parts=replace(made.parts, make_reconstructor=lambda info: Summing(real(info))))


def image_of(frames, shape):
    """Sum of the frames, each times its number; integers that single precision holds."""
    image = np.zeros(shape, np.complex64)
    for number, counts in sorted(frames.items()):
        rows, columns = counts.shape
        image[:rows, :columns] += number * counts.astype(np.float32)
    return image


class Summing:
    def __init__(self, real):
        self._real, self._frames = real, {}

    def __getattr__(self, name):
        return getattr(self._real, name)

    def add(self, frames):
        self._frames.update({frame.seq_num: np.asarray(frame.counts) for frame in frames})
        self._real.add(frames)

    def step(self, *args, **options):
        estimate = self._real.step(*args, **options)
        return estimate and replace(estimate, object=image_of(self._frames, estimate.object.shape))
