"""How well a frame encoder predicts what is hidden, on scans that training doesn't draw."""

from __future__ import annotations

import torch
from torch import Tensor

from bluesky_cdi.models.frame_decoders import MaskedFrameModel, stepped
from bluesky_cdi.models.frame_encoder import Shown
from bluesky_cdi.physics.forward import peak_intensity
from bluesky_cdi.physics.likelihood import poisson_deviance
from bluesky_cdi.training.losses import relative_error
from bluesky_cdi.training.pretrain import weight_of
from bluesky_cdi.training.pretraining.losses import hidden_deviance, hidden_pixels, reduced
from bluesky_cdi.training.pretraining.masking import draw_shown
from bluesky_cdi.training.pretraining.scans import Scans, simulated
from bluesky_cdi.training.pretraining.single_frames import SingleFrameSource
from bluesky_cdi.training.stream import Batch, SceneShape, SceneStream

# Far from the seeds of training.
SEED, SHAPE, DOSES = 30_011, SceneShape(64, 128, (25, 25), 8, 1.0), (1e4, 1e6)
# Of single frames, and after how many steps of error reduction they are judged.
DOSES_OF_SINGLE, REDUCTIONS = (1e6, 1e8), 20
# Share of the patches that are shown.
SHOWN = 0.5


def held_out_scans(
    device: torch.device, photons: float, patch: int, shape: SceneShape = SHAPE, seed: int = SEED
) -> tuple[Scans, Shown]:
    """Draw scans that training doesn't draw, probe and positions exact, and what of them is shown.

    Parameters
    ----------
    device : torch.device
        Where to compute.
    photons : float
        Mean photons of a frame.
    patch : int
        Pixels along a side of a patch.
    shape : SceneShape
        Their number and size.
    seed : int
        Of all that is random.
    """
    stream = SceneStream(device, seed, (photons, 1.001 * photons), 2 * shape.scenes, shape.grid_px)
    scans = simulated(stream, shape, exact=True)
    return scans, draw_shown(scans, patch, stream.draws, SHOWN)


@torch.no_grad()
def validate_frames(
    model: MaskedFrameModel, device: torch.device, shape: SceneShape = SHAPE
) -> dict[str, dict[str, float]]:
    """Compute deviances a hidden pixel and errors of objects: by dose (``1e+04``), then by what predicts.

    Parameters
    ----------
    model : MaskedFrameModel
        On `device`.
    device : torch.device
        Where to compute.
    shape : SceneShape
        Number and size of the scans.
    """
    table = {}
    for dose in DOSES:
        scans, shown = held_out_scans(device, dose, model.config.patch, shape)
        table[f"{dose:.0e}"] = {name: round(value, 4) for name, value in judged(model, scans, shown).items()}
    return table


@torch.no_grad()
def validate_single_frames(
    model: MaskedFrameModel, device: torch.device, frames: int | None = None
) -> dict[str, dict[str, float]]:
    """Compute deviances a pixel of single frames, all of whose patches are shown: by dose, then by what predicts.

    Parameters
    ----------
    model : MaskedFrameModel
        On `device`.
    device : torch.device
        Where to compute.
    frames : int, optional
        At each dose.

    Returns
    -------
    dict of dict
        Medians: under the object as it is read, as error reduction begins with it and with nothing, and the truth.
    """
    table = {}
    for dose in DOSES_OF_SINGLE:
        source = SingleFrameSource(device, SEED, (dose, 1.001 * dose), frames=frames)
        scans, _ = source.batch(0)
        everywhere = torch.ones_like(scans.data.counts, dtype=torch.bool)
        obj, flat = model(scans.probe, scans.data).object, torch.ones_like(scans.data.counts, dtype=torch.complex64)
        objects = {
            "object": obj,
            "object, error reduction": reduced(obj, scans, everywhere, REDUCTIONS),
            "error reduction": reduced(flat, scans, everywhere, REDUCTIONS),
        }
        if scans.truth is not None:
            objects["truth"] = scans.truth
        table[f"{dose:.0e}"] = {
            f"frames, {name}": round(float(hidden_deviance(each, scans, everywhere).median()), 4)
            for name, each in objects.items()
        }
    return table


@torch.no_grad()
def judged(model: MaskedFrameModel, scans: Scans, shown: Shown) -> dict[str, float]:
    """Hold what a model predicts of scans against what was hidden, and against what costs nothing.

    Parameters
    ----------
    model : MaskedFrameModel
        Predicts.
    scans : Scans
        The scans.
    shown : Shown
        What it is given.

    Returns
    -------
    dict of float
        Medians over frames or scans. ``patches, ...``: deviance a hidden pixel of shown frames, by the decoder, under
        the untrained one (the probe through vacuum), and, where it is known, under the truth. ``frames, ...``: the same
        of hidden frames, under the object, in vacuum, after some physics steps from it, and under the truth. ``NRMSE,
        ...``: errors of objects, where the truth is known.
    """
    found, patch = model(scans.probe, scans.data, shown), model.config.patch
    data, hidden = scans.data, hidden_pixels(shown, scans.data, patch)
    given = data[shown.frames]
    seen = torch.zeros(len(data), dtype=torch.bool, device=hidden.device).index_fill(0, shown.frames, True)
    theirs = given.propagator.to_detector(hidden[shown.frames])
    counts = given.propagator.to_detector(given.counts)

    def of_patches(log_rate: Tensor) -> float:
        deviance = (poisson_deviance(log_rate.exp(), counts) * theirs).sum(dim=(-2, -1))
        return float((deviance / theirs.sum(dim=(-2, -1)).clamp_min(1)).median())

    start, _ = stepped(given, given.probes(scans.probe), peak_intensity(scans.probe), shown, patch)
    objects = {"object": found.object, "vacuum": torch.ones_like(found.object), "physics steps": start}
    values = {"patches, decoder": of_patches(found.log_rate)}
    values["patches, probe through vacuum"] = of_patches(model.patterns.through_vacuum(found.encoded, data))
    if scans.truth is not None:
        objects["truth"] = scans.truth
        values["patches, truth"] = float(hidden_deviance(scans.truth, scans, hidden)[seen].median())
    for name, obj in objects.items():
        values[f"frames, {name}"] = float(hidden_deviance(obj, scans, hidden)[~seen].median())
    if scans.truth is not None:
        weight = weight_of(Batch(scans.truth, scans.probe, data, scans.judging_probe, scans.judging_data))
        for name in ("object", "vacuum", "physics steps"):
            error = relative_error(objects[name], scans.truth, weight).sqrt()
            values[f"NRMSE, {name}"] = float(error.median())
    return values
