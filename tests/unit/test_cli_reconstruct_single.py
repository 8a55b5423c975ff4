"""``bluesky-cdi reconstruct-single``: objects that are known come back from files of their frames."""

import json
import math

import h5py
import numpy as np
import pytest
import torch

from bluesky_cdi.cli import main
from bluesky_cdi.evaluation import complex_nrmse, resolve_ambiguities
from bluesky_cdi.io import read_single_shot
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.physics.propagators import FAR_FIELD, FresnelField, propagator_of
from bluesky_cdi.single_shot import SingleShotSettings

SIZE = 40
FAR = Geometry(8000.0, 1.0, 75e-6, SIZE)
# The command's own recipe with fewer iterations, which small samples need.
SHORT = ["--cycle", "hio:60,er:20", "--cycles", "6", "--finish", "er:40", "--starts", "6", "--seed", "3", "-q"]


def outline(size=SIZE):
    """A right-angled triangle with a notch, which no flip maps on itself."""
    y, x = np.indices((size, size)) - size // 2
    half = SIZE // 5
    return (y >= -half) & (x >= -half) & (y + x <= half // 2) & ~((abs(y) <= 1) & (x < 2 - half))


def sample(seed=0, size=SIZE):
    """Smooth waves of modulus and phase in the outline."""
    y, x = (np.indices((size, size)) - size // 2) / SIZE
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(2, 5, (2, 2)) * 2 * np.pi
    modulus, phase = 0.85 + 0.15 * np.cos(a[0] * y + b[0] * x), np.sin(a[1] * y - b[1] * x + 1)
    return np.where(outline(size), modulus * np.exp(1j * phase), 0)


def rates(wave, photons, propagator=FAR_FIELD):
    scaled = torch.from_numpy(wave * math.sqrt(photons / (np.abs(wave) ** 2).sum()))
    return propagator.to_detector(propagator.forward(scaled[None, None])[0, 0].abs().square()).numpy()


def error(found, truth):
    return complex_nrmse(resolve_ambiguities(found, truth).object, truth, np.ones(truth.shape))


def run(tmp_path, capsys, *options, out="out.cxi"):
    """Exit code, the printed JSON, and what the file holds."""
    code = main(["reconstruct-single", *map(str, options), "--out", str(tmp_path / out), "--json"])
    return code, json.loads(capsys.readouterr().out), read_single_shot(tmp_path / out)


@pytest.fixture
def support(tmp_path):
    np.save(tmp_path / "support.npy", outline())
    return tmp_path / "support.npy"


@pytest.mark.parametrize(("photons", "noisy", "limit"), [(1e8, False, 0.02), (1e6, True, 0.05)])
def test_a_known_sample_comes_back_in_its_support(tmp_path, capsys, support, photons, noisy, limit):
    rate = rates(sample(), photons)
    np.save(tmp_path / "a.npy", np.random.default_rng(1).poisson(rate) if noisy else rate)
    code, said, (image,) = run(tmp_path, capsys, tmp_path / "a.npy", "--support", support, "--no-shrink-wrap", *SHORT)
    assert code == 0
    assert error(image.object, sample()) < limit
    (frame,) = said["frames"]
    assert frame["verdict"] == image.verdict == "converged" and said["converged"] == 1
    assert frame["r_factor"] == image.r_factor[image.best] <= 1.1 * frame["noise_r_factor"] + 0.005
    np.testing.assert_array_equal(image.support, outline())
    assert image.pixel_m is None and frame["prtf_resolution_m"] is None
    assert image.provenance["file"] == "a.npy" and image.provenance["seed"] == 3
    assert image.provenance["settings"]["cycle"][0]["update"] == "hio"


def test_nothing_but_frames_is_enough(tmp_path, capsys):
    """Autocorrelation and shrink-wrap; each frame by itself, the same alone and among others."""
    rng = np.random.default_rng(2)
    truths = [sample(0, 48), sample(5, 48)]
    np.save(tmp_path / "a.npy", np.array([rng.poisson(rates(t, 1e7)) for t in truths], np.uint32))
    options = [tmp_path / "a.npy", "--starts", 6, "--cycles", 8, "-q"]
    code, said, images = run(tmp_path, capsys, *options)
    assert code == 0 and [frame["frames"] for frame in said["frames"]] == [[0], [1]]
    for image, truth in zip(images, truths, strict=True):
        assert error(image.object, truth) < 0.03
    _, _, (alone,) = run(tmp_path, capsys, *options, "--frames", 1, out="alone.cxi")
    np.testing.assert_array_equal(alone.object, images[1].object)
    assert alone.frames == (1,)


def test_frames_are_summed(tmp_path, capsys, support):
    """Exposures too weak alone; a pixel that is flagged in one of them is not valid in the sum."""
    rng = np.random.default_rng(3)
    frames = rng.poisson(rates(sample(), 1e6), (5, SIZE, SIZE)).astype(np.int32)
    frames[2, 5, 6] = -1
    np.save(tmp_path / "a.npy", frames)
    code, said, (image,) = run(
        tmp_path,
        capsys,
        tmp_path / "a.npy",
        "--sum",
        "--frames",
        "0,2-4",
        "--support",
        support,
        "--no-shrink-wrap",
        *SHORT,
    )
    assert code == 0 and said["frames"][0]["frames"] == [0, 2, 3, 4]
    assert error(image.object, sample()) < 0.05
    assert image.frames == (0, 2, 3, 4)


def test_a_beam_stop_is_left_open(tmp_path, capsys, support):
    rate = rates(sample(), 1e8)
    middle = slice(SIZE // 2 - 1, SIZE // 2 + 2)
    whole = rate.sum()
    hidden = rate[middle, middle].sum()
    rate[middle, middle] = np.nan
    rate[3, 4] = np.nan
    np.save(tmp_path / "a.npy", rate)
    code, said, (image,) = run(tmp_path, capsys, tmp_path / "a.npy", "--support", support, "--no-shrink-wrap", *SHORT)
    assert code == 0
    assert error(image.object, sample()) < 0.05
    assert said["frames"][0]["unmeasured_share"] == pytest.approx(hidden / whole, rel=0.05)
    # Anything else in those pixels, left out by a mask, is the same.
    mask = ~np.isnan(rate)
    np.save(tmp_path / "mask.npy", mask)
    np.save(tmp_path / "a.npy", np.where(mask, rate, 1e7))
    masked = run(
        tmp_path,
        capsys,
        tmp_path / "a.npy",
        "--mask",
        tmp_path / "mask.npy",
        "--support",
        support,
        "--no-shrink-wrap",
        *SHORT,
    )[2][0]
    np.testing.assert_array_equal(masked.object, image.object)


def beam(size=SIZE):
    y, x = np.indices((size, size)) - size // 2
    return np.exp(-(y**2 + x**2) / (2 * (0.22 * size) ** 2)) + 0j


@pytest.mark.parametrize("form", ["fresnel", "far", "near"])
def test_a_known_beam_gives_the_transmission_itself(tmp_path, capsys, support, form):
    """Fresnel diffraction imaging: curvature stated, in the probe, or a near field; no ambiguity is removed."""
    geometry = FAR if form != "near" else Geometry(12400.0, 0.8 * SIZE * 1e-14 / 1e-10, 1e-7, SIZE, "near")
    distance_m = 1.3 * SIZE * geometry.pixel_m**2 / geometry.wavelength_m
    curved = FresnelField(SIZE, geometry.pixel_m, geometry.wavelength_m, distance_m) if form != "near" else None
    transmission = np.where(outline(), 0.8 * sample() + 0.1, 1)
    propagator = propagator_of(geometry) if curved is None else curved
    light = beam() * math.sqrt(1e7 / (np.abs(beam()) ** 2).sum())
    wave = light * transmission
    rate = rates(wave, (np.abs(wave) ** 2).sum(), propagator)
    probe = light
    if form == "far":
        # The same beam with its curvature in the probe.
        y, x = np.indices((SIZE, SIZE)) - SIZE // 2
        squared = geometry.pixel_m**2 * (y**2 + x**2)
        probe = light * np.exp(1j * np.pi * squared / (geometry.wavelength_m * distance_m))
    np.savez(
        tmp_path / "a.npz",
        frames=np.random.default_rng(4).poisson(rate)[None],
        probe_guess=3 * probe[None],
        geometry=json.dumps(geometry.as_metadata()),
    )
    options = ["--surround", "clear", "--illumination-photons", 1e7, "--support", support]
    if form == "fresnel":
        options += ["--fresnel-distance", distance_m]
    stages = ["--cycle", "raar:60,er:20", "--cycles", "5", "--starts", "3", "-q"]
    code, said, (image,) = run(tmp_path, capsys, tmp_path / "a.npz", *options, *stages)
    assert code == 0 and said["frames"][0]["starts"]["converged"] == 3
    inside = outline()
    gap = np.sqrt((np.abs(image.object - transmission) ** 2)[inside].mean())
    assert gap < 0.1
    np.testing.assert_allclose(image.object[~inside & (np.abs(beam()) > 0.02)], 1, atol=1e-5)
    assert image.pixel_m == geometry.pixel_m
    assert image.provenance["illumination"] == "probe" and not said["frames"][0]["prtf_of_guided_starts"]
    if form == "near":
        assert said["frames"][0]["prtf_resolution_px"] is None


def test_frames_off_centre_and_not_square_are_cropped(tmp_path, capsys, support):
    rate = rates(sample(), 1e8)
    raw = np.full((50, 61), 7.0)
    raw[3 : 3 + SIZE, 15 : 15 + SIZE] = rate
    np.save(tmp_path / "a.npy", raw)
    line = [tmp_path / "a.npy", "--support", support, "--no-shrink-wrap", *SHORT]
    code, _, (image,) = run(tmp_path, capsys, *line, "--centre", 23, 35, "--crop", SIZE)
    assert code == 0 and error(image.object, sample()) < 0.02
    assert image.provenance["rows"] == [3, 3 + SIZE] and image.provenance["columns"] == [15, 15 + SIZE]
    assert main(["reconstruct-single", *map(str, line), "--out", str(tmp_path / "b.cxi")]) == 1
    assert "frames must be square; they are 50 x 61" in capsys.readouterr().err
    assert not (tmp_path / "b.cxi").exists()


def test_an_odd_frame(tmp_path, capsys):
    np.save(tmp_path / "support.npy", outline(41))
    np.save(tmp_path / "a.npy", rates(sample(size=41), 1e8))
    line = [tmp_path / "a.npy", "--support", tmp_path / "support.npy", "--no-shrink-wrap", *SHORT]
    code, _, (image,) = run(tmp_path, capsys, *line)
    assert code == 0 and error(image.object, sample(size=41)) < 0.02


def test_the_pixel_and_resolution_follow_the_crop(tmp_path, capsys, support):
    raw = np.zeros((60, 60))
    raw[10 : 10 + SIZE, 10 : 10 + SIZE] = rates(sample(), 1e6)
    geometry = json.dumps(Geometry(8000.0, 1.0, 75e-6, 60).as_metadata())
    np.savez(tmp_path / "a.npz", frames=np.random.default_rng(5).poisson(raw)[None], geometry=geometry)
    line = [tmp_path / "a.npz", "--crop", SIZE, "--support", support, "--guide-every", 0, "--no-shrink-wrap", *SHORT]
    code, said, (image,) = run(tmp_path, capsys, *line)
    (frame,) = said["frames"]
    assert code == 0 and image.pixel_m == frame["pixel_m"] == FAR.pixel_m
    assert frame["prtf_resolution_m"] == pytest.approx(frame["prtf_resolution_px"] * FAR.pixel_m)
    assert not frame["prtf_of_guided_starts"]


def test_what_did_not_converge_is_written_and_said(tmp_path, capsys, caplog):
    """In a wrong support nothing converges: exit code 1, but the result is there."""
    np.save(tmp_path / "wrong.npy", outline().T[::-1])
    np.save(tmp_path / "a.npy", np.random.default_rng(1).poisson(rates(sample(), 1e7)))
    code, said, (image,) = run(
        tmp_path, capsys, tmp_path / "a.npy", "--support", tmp_path / "wrong.npy", "--no-shrink-wrap", *SHORT
    )
    assert code == 1
    assert said["converged"] == 0 and said["frames"][0]["verdict"] == image.verdict == "stagnated"
    assert said["frames"][0]["prtf_resolution_px"] is None
    assert "no start of any frame converged" in caplog.text


def test_the_words_on_standard_output_and_the_figures(tmp_path, capsys, support):
    rate = rates(sample(), 1e6)
    np.save(tmp_path / "a.npy", np.random.default_rng(1).poisson(rate, (2, SIZE, SIZE)))
    line = ["reconstruct-single", str(tmp_path / "a.npy"), "--support", str(support), "--no-shrink-wrap", *SHORT]
    out, figure = tmp_path / "new" / "r.cxi", tmp_path / "figures" / "r.png"
    assert main([*line, "--out", str(out), "--png", str(figure)]) == 0
    said = capsys.readouterr()
    assert not said.err
    lines = said.out.splitlines()
    assert lines[0].startswith("frame 0") and "converged, " in lines[0] and "photon noise 0." in lines[0]
    assert "PRTF resolution" in lines[0] and "of guided starts" in lines[0]
    assert lines[2:4] == ["converged  2 of 2", f"result     {out}"]
    for number in (0, 1):
        assert figure.with_name(f"r-000{number}.png").read_bytes().startswith(b"\x89PNG")
    assert main([*line, "--out", str(out), "--png", str(figure), "--frames", "1"]) == 0
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_progress_goes_to_standard_error(tmp_path, capsys, support):
    np.save(tmp_path / "a.npy", np.random.default_rng(1).poisson(rates(sample(), 1e6)))
    line = ["reconstruct-single", str(tmp_path / "a.npy"), "--support", str(support), "--no-shrink-wrap", *SHORT[:-1]]
    assert main([*line, "--out", str(tmp_path / "r.cxi"), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["converged"] == 1
    assert "6/6" in said.err and "lowest R" in said.err


def test_an_interruption_leaves_the_result_of_before(tmp_path, capsys, support, monkeypatch):
    np.save(tmp_path / "a.npy", np.random.default_rng(1).poisson(rates(sample(), 1e6), (2, SIZE, SIZE)))
    line = ["reconstruct-single", str(tmp_path / "a.npy"), "--support", str(support), "--no-shrink-wrap", *SHORT]
    out = tmp_path / "r.cxi"
    assert main([*line, "--frames", "0", "--out", str(out)]) == 0
    before = out.read_bytes()

    def interrupted(target):
        """Instead of the link that a file gets once all images are in it."""
        raise KeyboardInterrupt

    monkeypatch.setattr(h5py, "SoftLink", interrupted)
    assert main([*line, "--out", str(out)]) == 130
    assert out.read_bytes() == before
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "r.h5"], "--out must end in .cxi"),
        (["--frames", "1"], "--frames must be numbers from 0 to 0, for the file holds 1; got 1"),
        (["--support", "a.npy"], "zeros and ones"),
        (["--support", "small.npy"], r"support and frame must agree; they are (8, 8) and (40, 40)"),
        (["--mask", "small.npy"], "--mask must have the frames' shape (40, 40); it has (8, 8)"),
        (["--surround", "clear"], "holds no probe"),
        (["--fresnel-distance", "1"], "needs the energy, distance and detector pixel"),
        (["--focus-to-sample", "0.01"], "Leave it out"),
        (["--background", "-1"], "background must be a finite number of 0 or more"),
        (["--saturation", "0"], "no photon in its 0 valid pixels"),
        (["--max-phase-rad", "2"], "between 0 and pi / 2"),
        (["--threshold", "1.5"], "a threshold between 0 and 1"),
        (["--device", "abacus"], "--device must be auto, cpu or a CUDA device"),
        (["--dataset", "x"], "has no dataset 'x'"),
        (["--out", "a.npy"], "--out must end in .cxi"),
        (["--png", "a.tif"], "--png must end in .png"),
    ],
)
def test_what_can_not_be_done_is_said_before_anything_is_written(tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", rates(sample(), 1e6))
    np.save("small.npy", np.eye(8))
    assert main(["reconstruct-single", "a.npy", "--out", "r.cxi", "-q", *options]) == 1
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npy", "small.npy"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((SIZE, SIZE), -0.5), "If a background was subtracted"),
        (np.zeros((SIZE, SIZE)), "no photon"),
        (np.full((SIZE, SIZE), np.nan), "no photon in its 0 valid pixels"),
        (np.full((SIZE, SIZE), np.inf), "infinite"),
    ],
)
def test_frames_that_can_not_be_counts(tmp_path, capsys, values, message):
    np.save(tmp_path / "a.npy", values)
    assert main(["reconstruct-single", str(tmp_path / "a.npy"), "--out", str(tmp_path / "r.cxi"), "-q"]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "r.cxi").exists()


def test_a_dark_frame_does_not_cost_the_others(tmp_path, capsys, support):
    frames = np.random.default_rng(1).poisson(rates(sample(), 1e6), (3, SIZE, SIZE))
    frames[1] = 0
    np.save(tmp_path / "a.npy", frames)
    options = ["--support", support, "--no-shrink-wrap", *SHORT]
    code, said, images = run(tmp_path, capsys, tmp_path / "a.npy", *options)
    assert code == 0 and said["converged"] == 2
    assert [image.frames for image in images] == [(0,), (2,)]
    (refused,) = [frame for frame in said["frames"] if frame["verdict"] == "refused"]
    assert refused["frames"] == [1] and "frame 1 has no photon" in refused["reason"]
    np.save(tmp_path / "a.npy", 0 * frames)
    line = ["reconstruct-single", str(tmp_path / "a.npy"), *map(str, options), "--out", str(tmp_path / "b.cxi")]
    assert main(line) == 1
    assert "none of 3 frames can be reconstructed; the first: frame 0 has no photon" in capsys.readouterr().err
    assert not (tmp_path / "b.cxi").exists()


def test_measured_data_are_not_replaced(tmp_path, capsys):
    import h5py

    with h5py.File(tmp_path / "a.cxi", "w") as file:
        file["entry_1/data_1/data"] = rates(sample(), 1e6)[None]
    before = (tmp_path / "a.cxi").read_bytes()
    assert main(["reconstruct-single", str(tmp_path / "a.cxi"), "--out", str(tmp_path / "a.cxi")]) == 1
    assert "measured data are not replaced" in capsys.readouterr().err
    assert (tmp_path / "a.cxi").read_bytes() == before


@pytest.mark.parametrize(
    ("option", "value"),
    [("--frames", "3-1"), ("--frames", "a"), ("--frames", "1,1"), ("--cycle", "magic:3"), ("--cycle", "hio:-1"),
     ("--finish", "er"), ("--starts", "0"), ("--cycles", "-1"), ("--surround", "grey")],
)  # fmt: skip
def test_wrong_options_are_usage_errors(tmp_path, capsys, option, value):
    with pytest.raises(SystemExit) as stopped:
        main(["reconstruct-single", "a.npy", option, value])
    assert stopped.value.code == 2
    assert option in capsys.readouterr().err


def test_the_help_states_the_settings_own_values(capsys):
    with pytest.raises(SystemExit):
        main(["reconstruct-single", "--help"])
    words = " ".join(capsys.readouterr().out.split())
    own = SingleShotSettings()
    for settings, names in (
        (own, ("cycles", "guide_every", "converged_r", "tolerance", "patience")),
        (own.shrink_wrap, ("every", "threshold", "sigma_px", "sigma_end_px", "decay")),
    ):
        for name in names:
            after = words[words.rindex(f" --{name.replace('_', '-')} ") :]
            assert after[after.index("(default: ") :].startswith(f"(default: {getattr(settings, name)})"), name
    for stages in (own.cycle, own.finish):
        assert ",".join(f"{s.update}:{s.iterations}:{s.beta}" for s in stages) in words.replace(", ", ",")
