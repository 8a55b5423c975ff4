"""Make ``forward_model.npz``: what two independent packages predict for the same probes, objects and positions.

Run by hand, in an environment of its own, whenever a case is added; the tests read the file only::

    python -m venv oracles
    oracles/bin/pip install torch==2.13.0 ptychi==2.2.0 cdtools-py==0.3.2
    oracles/bin/python tests/oracles/make_reference_values.py

pty-chi imports torchvision for an image generator that is not used here. Where torchvision has no
build that fits, install ``ptychi`` with ``--no-deps`` and its other requirements by name, and put a
module ``torchvision/transforms.py`` with an empty class ``GaussianBlur`` on the path.

Cases
-----
A position is the (row, column) in object pixels of the probe's centre, pixel ``[N // 2, N // 2]`` of
the probe. Both packages compute in double precision; the inputs are stored as they were used.

`rough`
    White noise in one probe mode and in the object, far field. Nothing is smooth, so two codes agree
    only if they do the same: pty-chi cuts the object at the nearest pixel and shifts the probe by the
    rest, cdtools cuts at the pixel below.
`whole`
    White noise in three modes, whole pixels, far field. (At parts of a pixel, the model of pty-chi's
    reconstructions shifts the first mode only, so that case has no three modes.)
`smooth`
    Three compact modes on a smooth object, sub-pixel, far field. cdtools shifts the probe; pty-chi is told to
    shift the object instead, which is the same for a probe that vanishes at the frame's border.
`near`
    The same in the near field by the angular spectrum, where a displaced exit wave would show.
`wave`
    One complex wave carried by each package's angular spectrum. pty-chi's carries the phase of the
    axis, ``exp(2 pi i z / wavelength)``; cdtools leaves it out.

Conventions of what is stored
-----------------------------
Intensities are those of the orthonormal FFT (pty-chi's own is unnormalised: divided by ``N**2``
here), with zero frequency at ``[N // 2, N // 2]`` (pty-chi's ``[0, 0]`` is moved). The near field
has the pixels of the exit wave. Keys: `noise_probe` and `smooth_probe` (3, N, N), of which `rough`
takes the first mode; `noise_object` and `smooth_object` (Y, X); `positions_px` (n, 2), rounded for
`whole`; ``<case>_ptychi`` and ``<case>_cdtools`` (n, N, N); `wave_ptychi` and `wave_cdtools`
(N, N), of the sum of `smooth_probe`'s modes; `near_wavelength_m`, `near_pixel_m`, `near_distance_m`; `versions`.
"""

from __future__ import annotations

import argparse
from importlib.metadata import version
from pathlib import Path

import numpy as np
import ptychi.api as api
import torch
from cdtools.models import FancyPtycho
from cdtools.tools.propagators import generate_angular_spectrum_propagator, near_field
from ptychi.api.task import PtychographyTask
from ptychi.forward_models import PlanarPtychographyForwardModel
from ptychi.propagate import AngularSpectrumPropagator, WavefieldPropagatorParameters

SIZE, SHAPE, FRAMES = 32, (64, 67), 4
# pty-chi cuts one more pixel on each side before it shifts an object by Fourier transform. An object
# with that period is shifted exactly.
MARGIN = 1
PERIOD = SIZE + 2 * MARGIN
# 10 keV, 100 nm, 1 mm: N pixel^2 / wavelength is 2.6 mm, so the angular spectrum is sampled.
WAVELENGTH_M, PIXEL_M, DISTANCE_M = 1.24e-10, 1e-7, 1e-3


def complex_noise(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """White noise, in single precision so that its file is small; cast up before use."""
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)


def compact_modes() -> np.ndarray:
    """Three Gauss-Hermite modes behind a curved, tilted phase: below 1e-6 of the peak at the border."""
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE // 2
    envelope = np.exp(-((y + 0.4) ** 2 + 1.2 * (x - 0.3) ** 2) / (4 * 1.9**2))
    phase = np.exp(1j * (0.03 * (y**2 + x**2) + 0.2 * y - 0.1 * x))
    modes = np.stack([30 * envelope, 6 * y * envelope, 4 * (x - 0.5 * y) * envelope])
    return (modes * phase).astype(np.complex64)


def smooth_object(rng: np.random.Generator) -> np.ndarray:
    """An absorbing, phase-shifting object without high frequencies, which repeats after `PERIOD` pixels."""
    frequency = np.fft.fftfreq(PERIOD)
    low = np.exp(-(frequency[:, None] ** 2 + frequency**2) / (2 * 0.03**2))
    noise = np.fft.ifft2(np.fft.fft2(rng.normal(size=(2, PERIOD, PERIOD))) * low).real
    absorption, phase = noise / noise.std(axis=(1, 2), keepdims=True)
    repeated = np.tile(np.exp(-0.1 * (1 + absorption) + 0.5j * phase), (2, 2))
    return np.ascontiguousarray(repeated[: SHAPE[0], : SHAPE[1]], np.complex64)


def positions_px(rng: np.random.Generator) -> np.ndarray:
    """Positions whose frames, with a pixel to spare, lie on the object."""
    low, high = SIZE // 2 + 2, np.array(SHAPE) - SIZE // 2 - 2
    return rng.uniform(low, high, (FRAMES, 2))


def ptychi_intensities(
    probe: np.ndarray, sample: np.ndarray, positions: np.ndarray, *, near: bool = False, shift_object: bool = False
) -> np.ndarray:
    """Intensities by the model of pty-chi's LSQ-ML, (n, N, N), zero frequency at the centre."""
    options = api.LSQMLOptions()
    options.reconstructor_options.default_device = api.Devices.CPU
    options.reconstructor_options.default_dtype = api.Dtypes.FLOAT64
    options.object_options.pixel_size_m = PIXEL_M
    options.object_options.determine_position_origin_coords_by = api.ObjectPosOriginCoordsMethods.SPECIFIED
    # A patch begins at position + origin - (N - 1) / 2: this makes pixel N // 2 the centre.
    options.object_options.position_origin_coords = [-0.5, -0.5]
    options.data_options.wavelength_m = WAVELENGTH_M
    options.data_options.fft_shift = not near
    if near:
        options.data_options.free_space_propagation_distance_m = DISTANCE_M
    task = PtychographyTask(
        options,
        diffraction_data=np.ones((len(positions), SIZE, SIZE)),
        object_data=sample[None].astype(np.complex128),
        probe_data=probe[None].astype(np.complex128),
        probe_position_y_px=positions[:, 0],
        probe_position_x_px=positions[:, 1],
    )
    model = task.reconstructor.forward_model
    if shift_object:
        model = PlanarPtychographyForwardModel(
            task.reconstructor.parameter_group,
            wavelength_m=WAVELENGTH_M,
            free_space_propagation_distance_m=DISTANCE_M if near else torch.inf,
            pad_for_shift=MARGIN,
            apply_subpixel_shifts_on_probe=False,
        )
    with torch.no_grad():
        predicted = model(torch.arange(len(positions))).numpy()
    return predicted if near else np.fft.fftshift(predicted, axes=(-2, -1)) / SIZE**2


def cdtools_intensities(
    probe: np.ndarray, sample: np.ndarray, positions: np.ndarray, *, near: bool = False
) -> np.ndarray:
    """Intensities by cdtools' `FancyPtycho`, (n, N, N)."""
    # Rows run along -y and columns along -x, as in a CXI file without basis vectors.
    basis = torch.tensor([[0.0, -1.0], [-1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    corner = torch.from_numpy(positions) - SIZE // 2
    model = FancyPtycho(
        WAVELENGTH_M,
        {"distance": DISTANCE_M, "basis": basis},
        basis,
        probe,
        sample,
        surface_normal=torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64),
        background=np.zeros((SIZE, SIZE)),
        dtype=torch.float64,
        near_field=near,
        angular_spectrum_propagator=cdtools_propagator() if near else None,
    )
    # The model casts its parts to single precision; the values are the same, the arithmetic is not.
    model.probe.data = torch.from_numpy(probe).to(torch.complex128)
    model.obj.data = torch.from_numpy(sample).to(torch.complex128)
    model.probe_norm.fill_(1.0)
    if near:
        model.angular_spectrum_propagator = cdtools_propagator()
    translations = torch.cat([corner @ basis.T[:, :2], torch.zeros(len(corner), 1)], dim=1)
    with torch.no_grad():
        predicted = model(torch.arange(len(positions)), translations)
    return np.asarray(predicted.numpy())


def cdtools_propagator() -> torch.Tensor:
    """Transfer function of cdtools' angular spectrum, double precision."""
    transfer: torch.Tensor = generate_angular_spectrum_propagator(
        (SIZE, SIZE), (PIXEL_M, PIXEL_M), WAVELENGTH_M, DISTANCE_M, dtype=torch.complex128
    )
    return transfer


def ptychi_propagated(wave: np.ndarray) -> np.ndarray:
    """The wave after `DISTANCE_M`, by pty-chi; call after a task has set double precision."""
    parameters = WavefieldPropagatorParameters.create_simple(WAVELENGTH_M, SIZE, SIZE, PIXEL_M, PIXEL_M, DISTANCE_M)
    propagator = AngularSpectrumPropagator(parameters)
    return np.asarray(propagator.propagate_forward(torch.from_numpy(wave)).numpy())


def make() -> dict[str, np.ndarray]:
    """All cases."""
    rng = np.random.default_rng(2024)
    rough, texture = complex_noise(rng, 3, SIZE, SIZE), complex_noise(rng, *SHAPE)
    smooth, positions = smooth_object(rng), positions_px(rng)
    cases = {
        "rough": (rough[:1], texture, positions, {}),
        "whole": (rough, texture, np.rint(positions), {}),
        "smooth": (compact_modes(), smooth, positions, {"shift_object": True}),
        "near": (compact_modes(), smooth, positions, {"shift_object": True, "near": True}),
    }
    values = {"noise_object": texture, "smooth_object": smooth, "noise_probe": rough, "smooth_probe": compact_modes()}
    values |= {"positions_px": positions}
    for name, (probe, sample, where, options) in cases.items():
        near = options.get("near", False)
        # Single precision keeps seven digits, two more than the tests ask for.
        values[f"{name}_ptychi"] = ptychi_intensities(probe, sample, where, **options).astype(np.float32)
        values[f"{name}_cdtools"] = cdtools_intensities(probe, sample, where, near=near).astype(np.float32)
    wave = compact_modes().sum(axis=0).astype(np.complex128)
    carried = near_field(torch.from_numpy(wave), cdtools_propagator()).numpy()
    values["wave_ptychi"] = ptychi_propagated(wave).astype(np.complex64)
    values["wave_cdtools"] = carried.astype(np.complex64)
    values["near_wavelength_m"], values["near_pixel_m"] = np.array(WAVELENGTH_M), np.array(PIXEL_M)
    values["near_distance_m"] = np.array(DISTANCE_M)
    values["versions"] = np.array([f"{name} {version(name)}" for name in ("ptychi", "cdtools-py", "torch")])
    return values


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("forward_model.npz"))
    out = parser.parse_args().out
    values = make()
    np.savez_compressed(out, **values)
    # Not `rough`, for which each package shifts another probe.
    for name in ("whole", "smooth", "near"):
        one, other = values[f"{name}_ptychi"], values[f"{name}_cdtools"]
        print(f"{name:7} peak {one.max():9.3f}, packages differ by {abs(one - other).max() / one.max():.1e} of it")
    print(f"{out}: {out.stat().st_size} bytes, {', '.join(values['versions'])}")


if __name__ == "__main__":
    main()
