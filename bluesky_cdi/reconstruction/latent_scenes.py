"""Embeddings of frames of simulated scenes, from which the projection of weights is found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bluesky_cdi.engines.ptychography import Schedule, Solution, iterate
from bluesky_cdi.latents.fitting import SceneEmbeddings
from bluesky_cdi.models.frame_weights import TrainedFrameModel
from bluesky_cdi.models.unrolled import UnrolledNet
from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.physics.illumination import summed_illumination
from bluesky_cdi.reconstruction.frame_embedding import ClassTokens
from bluesky_cdi.reconstruction.prediction import predict_object
from bluesky_cdi.reconstruction.refinement import prior_of, refiner
from bluesky_cdi.reconstruction.uncertainty import NetworkEstimator
from bluesky_cdi.training.stream import SceneShape, SceneStream

# Photons of a frame: what training draws, but for the ends, where nothing or all can be seen.
PHOTONS = (1e3, 1e7)
# Most scenes have small frames, as in training; every fourth has larger ones.
SMALL, LARGE, LARGE_EVERY = SceneShape(64, 160, (12, 72), 1, 1.0), SceneShape(128, 224, (12, 40), 1, 1.0), 4
# Objects that scenes are cut from.
POOL = 128
# Every second object is refined, as a run's is in the end.
REFINED_FOR = 5
# Fewest frames of the half from which a scene is reconstructed again.
LEAST_HALF = 4

# A scene's probe (1, M, N, N) and frames.
Scene = tuple[Tensor, Diffraction]
# Of the frames of a scene, (n, d).
Embeddings = npt.NDArray[np.float32]
# From a scene's probe and frames, and whether the object would be refined.
Describes = Callable[[Tensor, Diffraction, bool], Embeddings]


def draw_scenes(device: torch.device, number: int, seed: int) -> Iterator[Scene]:
    """Draw scenes of all kinds that training draws.

    Parameters
    ----------
    device : torch.device
        Where they are made.
    number : int
        How many.
    seed : int
        Of all that is random.
    """
    stream = SceneStream(device, seed, PHOTONS, POOL)
    for i in range(number):
        batch = stream.draw(LARGE if i % LARGE_EVERY == LARGE_EVERY - 1 else SMALL)
        yield batch.probe, batch.data


def embed_scenes(
    describes: Describes, scenes: Iterable[Scene], seed: int, on_scene: Callable[[int], None] | None = None
) -> SceneEmbeddings:
    """Describe the frames of scenes with all frames of their scene, and again with half of them.

    Parameters
    ----------
    describes : callable
        Gives the embeddings of a scene's frames; `critic_of` or `class_tokens_of`.
    scenes : iterable of Scene
        Of every second the object is refined, if there is any.
    seed : int
        Of which frames are in a half.
    on_scene : callable, optional
        Called after each scene with how many there are.
    """
    rng = np.random.default_rng(seed)
    whole, again, numbers = [], [], []
    for number, (probe, data) in enumerate(scenes):
        n, refined = len(data), number % 2 == 1
        half = np.sort(rng.permutation(n)[: max(LEAST_HALF, n // 2)])
        whole.append(describes(probe, data, refined))
        again.append(np.full_like(whole[-1], np.nan))
        again[-1][half] = describes(probe, data[torch.from_numpy(half).to(probe.device)], refined)
        numbers.append(np.full(n, number))
        if on_scene is not None:
            on_scene(number + 1)
    return SceneEmbeddings(np.concatenate(whole), np.concatenate(again), np.concatenate(numbers))


def critic_of(net: UnrolledNet) -> Describes:
    """Describe frames by a network's critic, once it has reconstructed what they show."""

    @torch.no_grad()
    def describes(probe: Tensor, data: Diffraction, refined: bool) -> Embeddings:
        obj = predict_object(net, probe, data)
        if refined:
            engine = refiner(prior_of(net, obj, probe, data), len(data), REFINED_FOR)
            obj = iterate(engine, Solution.start(obj, probe, data), Schedule(REFINED_FOR, -1)).solution.object
        illumination = summed_illumination(probe, data)
        unknown = torch.full((len(data),), torch.nan, device=probe.device)
        return NetworkEstimator(net)(obj, probe, data, illumination, unknown).embedding.cpu().numpy()

    return describes


def class_tokens_of(trained: TrainedFrameModel) -> Describes:
    """Describe frames by the class tokens of a frame encoder, without any object."""
    tokens = ClassTokens(trained)

    def describes(probe: Tensor, data: Diffraction, refined: bool) -> Embeddings:
        everyone = torch.arange(len(data), device=probe.device)
        return tokens(probe, data, everyone).cpu().numpy()

    return describes
