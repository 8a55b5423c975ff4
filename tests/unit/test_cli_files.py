"""The commands that turn files into others and compare them: ``convert`` and ``compare``."""

import json
from dataclasses import replace

import numpy as np
import pytest

from bluesky_cdi.cli import main
from bluesky_cdi.io import Scan, read_ptychodus, read_scan, scan_formats, write_cxi_result, write_product, write_scan
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.protocols import Estimate

FAR = Geometry(9000.0, 1.9, 75e-6, 16)
NEAR = Geometry(12658.0, 1.12, 55e-6, 16, "near", 3.65e-3)
OUTS = {"cxi": "b.cxi", "canonical": "b.npz", "ptychopinn": "b.pinn", "ptychodus": "b.h5"}


def make_scan(geometry=FAR, modes=1, probe=True) -> Scan:
    rng = np.random.default_rng(5)
    counts = rng.poisson(40.0, (6, 16, 16)).astype(np.uint16)
    values = rng.normal(size=(modes, 16, 16)) + 1j * rng.normal(size=(modes, 16, 16))
    mask = np.ones((16, 16), bool)
    mask[3, 4:7] = False
    photons = (counts * mask).sum() / len(counts)
    return Scan(
        counts=counts,
        positions_m=rng.uniform(-0.4, 0.4, (6, 2)) * 16 * geometry.pixel_m,
        geometry=geometry,
        probe=(values * np.sqrt(photons / (abs(values) ** 2).sum())).astype(np.complex64) if probe else None,
        mask=mask,
        name="a",
        source={"propagation": "near field" if geometry.propagation == "near" else "far field"},
    )


@pytest.fixture
def scan_file(tmp_path):
    path = tmp_path / "a.cxi"
    write_scan(path, make_scan())
    return path


def estimate(seed=0, noise=0.0) -> Estimate:
    """A sample of one seed with noise of another, illuminated all over; frames of odd and of even seeds are halves."""
    shape = (64, 72)
    rng = np.random.default_rng(11)
    spectrum = np.fft.fft2(rng.normal(size=shape))
    frequency = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.fftfreq(shape[1]))
    smooth = np.fft.ifft2(spectrum * (frequency < 0.2)).real
    rough = np.random.default_rng(seed).normal(size=(2, *shape))
    origin_m, pixel_m = (-2e-6, 3e-6), FAR.pixel_m
    centres = [(y, x) for y in range(8, 57, 8) for x in range(8, 65, 8)]
    n = len(centres)
    return Estimate(
        n_frames=n,
        object=(np.exp(0.5j * smooth) + noise * (rough[0] + 1j * rough[1])).astype(np.complex64),
        origin_m=origin_m,
        pixel_m=pixel_m,
        probe=np.ones((1, 16, 16), np.complex64),
        std_amplitude=np.ones(shape, np.float32),
        std_phase_rad=np.ones(shape, np.float32),
        coverage=np.ones(shape, np.float32),
        frame_seq_nums=np.arange(n) * 2 + 1 + seed % 2,
        positions_m=np.asarray(origin_m) + np.asarray(centres) * pixel_m,
        embedding=np.zeros((n, 2), np.float32),
        frame_uncertainty=np.ones(n, np.float32),
        residual=np.ones(n, np.float32),
        novelty=np.ones(n, np.float32),
    )


@pytest.fixture
def halves(tmp_path):
    """A product and a CXI result, whose names don't tell which is which."""
    write_product(tmp_path / "one", estimate(1, 0.02), FAR, "one")
    write_cxi_result(tmp_path / "two", estimate(2, 0.02), FAR, "two")
    return str(tmp_path / "one"), str(tmp_path / "two")


class TestConvert:
    @pytest.mark.parametrize("form", scan_formats())
    def test_into_each_form(self, scan_file, tmp_path, capsys, form):
        out = tmp_path / "new" / OUTS[form]
        choice = [] if form != "ptychopinn" else ["--format", form]
        assert main(["convert", str(scan_file), str(out), "--json", *choice]) == 0
        reported = json.loads(capsys.readouterr().out)
        scan = make_scan()
        assert (reported["frames"], reported["frame_px"], reported["masked_pixels"]) == (6, 16, 3)
        assert reported["pixel_m"] == pytest.approx(FAR.pixel_m)
        assert reported["photons_per_frame"] == pytest.approx(scan.mean_photons)
        assert (reported["format"], reported["written_format"]) == ("cxi", form)
        back = read_scan(out)
        np.testing.assert_allclose(back.counts * scan.mask, scan.counts * scan.mask, rtol=5e-7)
        np.testing.assert_allclose(back.positions_m, scan.positions_m, rtol=1e-12)
        assert [str(out)] == reported["written"][:1] and len(reported["written"]) == (2 if form == "ptychodus" else 1)
        assert {path.name for path in out.parent.iterdir()} == {name.split("/")[-1] for name in reported["written"]}

    def test_what_is_not_kept_is_said(self, scan_file, tmp_path, capsys, caplog):
        assert main(["convert", str(scan_file), str(tmp_path / "b.npz"), "--format", "ptychopinn", "--json"]) == 0
        lost = json.loads(capsys.readouterr().out)["not_kept"]
        assert "energy ev (9000 reads as 8000)" in lost and "distance m (1.9 reads as 1)" in lost
        assert "that energy and distance are measured" in lost
        assert "counts (uint16 reads as float32)" in lost and "the name 'a'" not in lost  # it was the file's
        assert "b.npz does not keep energy ev (9000 reads as 8000)" in caplog.text
        caplog.clear()
        assert main(["convert", str(tmp_path / "b.npz"), str(tmp_path / "c.h5")]) == 0
        assert "that energy and distance are nominal" in caplog.text and "the notes counts" in caplog.text

    def test_only_the_canonical_form_keeps_the_flux(self, tmp_path, caplog):
        flux = np.array([0.9, 1.0, 1.1, 1.0, 0.8, 1.0])
        write_scan(tmp_path / "c.npz", replace(make_scan(), flux=flux))
        np.testing.assert_array_equal(read_scan(tmp_path / "c.npz").flux, flux)
        assert main(["convert", str(tmp_path / "c.npz"), str(tmp_path / "b.cxi")]) == 0
        assert "b.cxi does not keep the monitored flux; the name 'a'" in caplog.text

    def test_what_is_kept_needs_no_word(self, scan_file, tmp_path, capsys, caplog):
        assert main(["convert", str(scan_file), str(tmp_path / "b.npz")]) == 0
        assert not caplog.text
        lines = capsys.readouterr().out.splitlines()
        assert any(line.split() == ["frames", "6", "of", "16", "x", "16", "pixels,", "uint16"] for line in lines)
        assert any("9000 eV, 1.9 m, far field" in line for line in lines)

    def test_several_modes_become_the_strongest(self, tmp_path, caplog):
        scan = make_scan(modes=3)
        write_scan(tmp_path / "a.cxi", scan)
        assert main(["convert", str(tmp_path / "a.cxi"), str(tmp_path / "b.npz"), "--format", "ptychopinn"]) == 0
        assert "probe modes (3 reads as 1)" in caplog.text
        with np.load(tmp_path / "b.npz") as file:
            kept = file["probeGuess"]
        power = (abs(scan.probe) ** 2).sum(axis=(1, 2))
        expected = scan.probe[power.argmax()] * np.sqrt(power.sum() / power.max())
        np.testing.assert_allclose(kept, expected, rtol=1e-5)

    def test_near_field_is_declared(self, tmp_path, capsys):
        write_scan(tmp_path / "a.cxi", make_scan())
        line = ["convert", str(tmp_path / "a.cxi"), str(tmp_path / "b.npz"), "--focus-to-sample", "3.65e-3", "--json"]
        assert main(line) == 0
        assert json.loads(capsys.readouterr().out)["propagation"] == "near field"
        assert read_scan(tmp_path / "b.npz").geometry.focus_to_sample_m == 3.65e-3

    def test_positions_of_patterns_in_a_file_of_their_own(self, tmp_path, capsys):
        folder = tmp_path / "elsewhere"
        folder.mkdir()
        write_scan(tmp_path / "a.h5", make_scan())
        (tmp_path / "a-product.h5").rename(folder / "p.h5")
        assert main(["convert", str(tmp_path / "a.h5"), str(tmp_path / "b.npz")]) == 1
        assert "holds patterns only" in capsys.readouterr().err
        line = ["convert", str(tmp_path / "a.h5"), str(tmp_path / "b.npz"), "--product", str(folder / "p.h5")]
        assert main(line) == 0
        scan = read_ptychodus(tmp_path / "a.h5", folder / "p.h5")
        np.testing.assert_array_equal(read_scan(tmp_path / "b.npz").positions_m, scan.positions_m)

    @pytest.mark.parametrize("exists", ["b.h5", "b-product.h5"])
    def test_nothing_is_replaced_unasked(self, scan_file, tmp_path, capsys, exists):
        (tmp_path / exists).write_text("precious")
        line = ["convert", str(scan_file), str(tmp_path / "b.h5")]
        assert main(line) == 1
        assert f"{exists} exists" in capsys.readouterr().err
        assert (tmp_path / exists).read_text() == "precious"
        assert not (tmp_path / ({"b.h5", "b-product.h5"} - {exists}).pop()).exists()
        assert main([*line, "--force"]) == 0
        assert len(read_scan(tmp_path / "b.h5")) == 6

    def test_what_is_read_is_not_replaced_even_if_asked(self, scan_file, tmp_path, capsys):
        before = scan_file.read_bytes()
        assert main(["convert", str(scan_file), str(tmp_path / "." / "a.cxi"), "--force"]) == 1
        assert "measured data are not replaced" in capsys.readouterr().err
        assert scan_file.read_bytes() == before

    def test_nor_is_the_product_that_was_read(self, tmp_path, capsys):
        write_scan(tmp_path / "a.h5", make_scan())
        (tmp_path / "a-product.h5").rename(tmp_path / "product-in.h5")
        before = (tmp_path / "product-in.h5").read_bytes()
        assert main(["convert", str(tmp_path / "a.h5"), str(tmp_path / "diffraction.h5"), "--force"]) == 1
        assert "product-in.h5 is what is read" in capsys.readouterr().err
        assert (tmp_path / "product-in.h5").read_bytes() == before
        assert not (tmp_path / "diffraction.h5").exists()

    def test_forms_that_can_not_hold_the_scan(self, tmp_path, capsys):
        write_scan(tmp_path / "near.cxi", make_scan(NEAR))
        assert main(["convert", str(tmp_path / "near.cxi"), str(tmp_path / "b"), "--format", "ptychopinn"]) == 1
        assert "far-field scans" in capsys.readouterr().err
        write_scan(tmp_path / "bare.cxi", make_scan(probe=False))
        assert main(["convert", str(tmp_path / "bare.cxi"), str(tmp_path / "b.h5")]) == 1
        assert "must hold a probe" in capsys.readouterr().err
        assert not (tmp_path / "b").exists() and not (tmp_path / "b.h5").exists()

    def test_files_that_are_no_scan(self, tmp_path, capsys):
        assert main(["convert", str(tmp_path / "none.cxi"), str(tmp_path / "b.npz")]) == 1
        assert "no file" in capsys.readouterr().err
        (tmp_path / "text.cxi").write_text("nothing")
        assert main(["convert", str(tmp_path / "text.cxi"), str(tmp_path / "b.npz")]) == 1
        assert "text.cxi" in capsys.readouterr().err
        assert not (tmp_path / "b.npz").exists()

    def test_an_ending_that_stands_for_nothing(self, scan_file, tmp_path, capsys):
        assert main(["convert", str(scan_file), str(tmp_path / "b.mat")]) == 1
        assert "'b.mat' is none of them" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--format", "matlab"], "must be one of cxi, canonical, ptychopinn, ptychodus; got 'matlab'"),
            (["--product", "p.h5", "--focus-to-sample", "1"], "not allowed with"),
        ],
    )
    def test_usage(self, scan_file, capsys, options, message):
        with pytest.raises(SystemExit) as stopped:
            main(["convert", str(scan_file), "b.npz", *options])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err

    def test_help_names_every_form(self, capsys):
        with pytest.raises(SystemExit):
            main(["convert", "--help"])
        reported = capsys.readouterr().out
        assert all(form in reported for form in scan_formats())


class TestCompare:
    def test_numbers_and_figure(self, halves, tmp_path, capsys, caplog):
        figure = tmp_path / "new" / "figure.png"
        assert main(["compare", *halves, "--figure", str(figure), "--json"]) == 0
        reported = json.loads(capsys.readouterr().out)
        # Two noises of 0.02 in each part against the contrast of exp(0.5 i smooth).
        contrast = np.std(estimate().object)
        assert reported["complex_nrmse"] == pytest.approx(0.04 / contrast, rel=0.1)
        assert reported["pixels"] == 64 * 72
        assert reported["frc_square_px"]["side"] == 64
        assert len(reported["frc"]["correlation"]) == len(reported["frc"]["frequency_per_m"]) == 32
        # The phase ends at 0.2 cycles per pixel, its square, the next term of the exponential, at 0.4.
        assert 2.5 < reported["resolution_half_bit_m"] / FAR.pixel_m < 5
        assert reported["resolution_one_bit_m"] > reported["resolution_half_bit_m"]
        assert reported["resolution_half_bit"] == f"{reported['resolution_half_bit_m'] * 1e9:.3g} nm"
        assert "independent halves of the data" in reported["frc_claim"]
        assert figure.read_bytes().startswith(b"\x89PNG") and figure.stat().st_size > 10_000
        assert not caplog.text

    def test_for_people(self, halves, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert main(["compare", *halves]) == 0
        rows = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
        assert {"complex NRMSE", "phase MAE", "half-bit FRC", "one-bit FRC"} <= set(rows)
        assert rows["half-bit FRC"].strip().endswith("nm")
        assert "a resolution only if A and B come from independent halves of the data" in rows["FRC is"]
        assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")

    def test_against_a_truth_nothing_is_claimed(self, halves, tmp_path, capsys):
        line = ["compare", *halves, "--truth", "--figure", str(tmp_path / "c.png")]
        assert main(line) == 0
        said = capsys.readouterr().out
        assert "against a truth, no resolution from independent halves" in said
        assert "only if" not in said

    def test_one_reconstruction_with_itself(self, halves, tmp_path, capsys, caplog):
        line = ["compare", halves[0], halves[0], "--figure", str(tmp_path / "c.png"), "--json"]
        assert main(line) == 0
        reported = json.loads(capsys.readouterr().out)
        limit = f"better than {2e9 * FAR.pixel_m:.3g} nm (2 pixels"
        assert reported["resolution_half_bit"].startswith(limit) and reported["resolution_half_bit_m"] is None
        assert reported["complex_nrmse"] < 1e-6
        assert "A and B share 56 frames by number: no independent halves" in caplog.text

    def test_nothing_in_common(self, tmp_path, capsys):
        flat = replace(estimate(3), object=np.ones((64, 72), np.complex64))
        write_product(tmp_path / "a.h5", estimate(1), FAR)
        write_product(tmp_path / "b.h5", flat, FAR)
        files = [str(tmp_path / "a.h5"), str(tmp_path / "b.h5")]
        assert main(["compare", *files, "--figure", str(tmp_path / "c.png"), "--json"]) == 0
        text = capsys.readouterr().out
        reported = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
        assert reported["resolution_one_bit"] == "none" and reported["resolution_one_bit_m"] is None
        assert reported["complex_nrmse"] is None

    def test_a_weak_ring_that_decides_is_told(self, tmp_path, capsys, caplog):
        """Two halves that differ in a band of low frequencies alone."""
        frequency = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.fftfreq(72))
        band = (frequency > 0.05) & (frequency < 0.1)
        signal = np.fft.fft2(np.random.default_rng(0).normal(size=(64, 72)))
        files = [str(tmp_path / name) for name in ("a.h5", "b.h5")]
        for seed, path in enumerate(files):
            noise = np.fft.fft2(np.random.default_rng(seed + 1).normal(size=(64, 72)))
            image = 1 + 0.2 * np.fft.ifft2(np.where(band, noise, signal))
            write_product(path, replace(estimate(), object=image.astype(np.complex64)), FAR)
        assert main(["compare", *files, "--figure", str(tmp_path / "c.png"), "--json"]) == 0
        reported = json.loads(capsys.readouterr().out)
        assert 1 / 0.1 < reported["resolution_half_bit_m"] / FAR.pixel_m < 1 / 0.03
        assert reported["resolution_half_bit"].endswith(" µm")
        assert "below the half-bit threshold" in caplog.text and "the first crossing may understate" in caplog.text

    def test_pixels_that_differ(self, halves, tmp_path, capsys):
        geometry = Geometry(9000.0, 2.0, 75e-6, 16)
        write_product(tmp_path / "b.h5", replace(estimate(1), pixel_m=geometry.pixel_m), geometry)
        assert main(["compare", halves[0], str(tmp_path / "b.h5"), "--figure", str(tmp_path / "c.png")]) == 1
        assert "on one pixel" in capsys.readouterr().err
        assert not (tmp_path / "c.png").exists()

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [("none.h5", None, "no file"), ("text.h5", b"nothing", "a reconstruction (Ptychodus product or CXI)")],
    )
    def test_files_that_are_no_reconstruction(self, halves, tmp_path, capsys, name, content, message):
        if content:
            (tmp_path / name).write_bytes(content)
        assert main(["compare", halves[0], str(tmp_path / name), "--figure", str(tmp_path / "c.png")]) == 1
        assert message in capsys.readouterr().err

    def test_a_scan_is_no_reconstruction(self, halves, scan_file, tmp_path, capsys):
        assert main(["compare", halves[0], str(scan_file), "--figure", str(tmp_path / "c.png")]) == 1
        assert "a scan is read by read_cxi" in capsys.readouterr().err.lower()

    def test_a_figure_that_can_not_be_drawn(self, halves, tmp_path, capsys):
        assert main(["compare", *halves, "--figure", str(tmp_path / "c.nonsense")]) == 1
        assert "can't draw" in capsys.readouterr().err

    def test_usage(self, capsys):
        with pytest.raises(SystemExit) as stopped:
            main(["compare", "one.h5"])
        assert stopped.value.code == 2
        assert "B" in capsys.readouterr().err
