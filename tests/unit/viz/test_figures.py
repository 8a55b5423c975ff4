import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure

from bluesky_cdi import viz
from bluesky_cdi.evaluation import fourier_ring_correlation
from bluesky_cdi.evaluation.fit import FittedFrame
from bluesky_cdi.evaluation.resolution import ResolutionCheck, resolution_notes
from bluesky_cdi.io import SingleShotImage
from bluesky_cdi.latents import latents_of, paint_frames, representatives
from bluesky_cdi.protocols import Estimate, Proposal

PIXEL_M = 2e-8
TABLE = {"frames": "9 of 20", "complex NRMSE": "0.100", "dose": "1.2e6 photons/µm²"}


@pytest.fixture
def estimate():
    rng = np.random.default_rng(0)
    shape = (60, 80)
    y, x = np.indices(shape)
    thickness = (np.sin(8 * np.arctan2(y - 30, x - 40)) > 0) & (np.hypot(y - 30, x - 40) < 20)
    coverage = np.where((abs(y - 30) < 25) & (abs(x - 40) < 30), 500.0, 0.0)
    path = np.array([(a, b) for a in (-2e-7, 0, 2e-7) for b in (-3e-7, 0, 3e-7)])
    n = len(path)
    return Estimate(
        n_frames=n,
        object=np.exp(1j * (0.7 - 0.9 * thickness + 0.05 * rng.normal(size=shape))).astype(np.complex64),
        origin_m=(-6e-7, -8e-7),
        pixel_m=PIXEL_M,
        probe=np.ones((1, 8, 8), np.complex64),
        std_amplitude=np.full(shape, 0.05, np.float32),
        std_phase_rad=np.full(shape, 0.05, np.float32),
        coverage=coverage.astype(np.float32),
        frame_seq_nums=np.arange(1, n + 1),
        positions_m=path,
        embedding=np.zeros((n, 2), np.float32),
        frame_uncertainty=np.ones(n, np.float32),
        residual=np.ones(n, np.float32),
        novelty=np.ones(n, np.float32),
    )


def panels(fig):
    return {ax.get_title(): ax for ax in fig.axes if ax.get_title()}


def shown(ax):
    return ax.images[0]


def test_import_loads_no_matplotlib():
    code = "import sys, bluesky_cdi.viz; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_show_estimate_has_four_panels_in_micrometres(estimate):
    fig = viz.show_estimate(estimate)
    found = panels(fig)
    assert list(found) == ["Amplitude", "Phase", "Predicted phase error", "Coverage and path"]
    for ax in found.values():
        assert shown(ax).get_extent() == pytest.approx([-0.81, 0.79, 0.59, -0.61])  # row 0 is above
        assert ax.get_xlabel() == "x (µm)"
        assert ax.get_aspect() == 1
    assert fig.get_suptitle() == "Reconstruction from 9 frames"


def test_a_wanted_resolution_is_drawn_beside(estimate):
    frc = fourier_ring_correlation(estimate.object, estimate.object, PIXEL_M)
    checks = [ResolutionCheck(20, frc, PIXEL_M), ResolutionCheck(30, frc, PIXEL_M)]
    notes = {**resolution_notes(checks, 5e-8), "resolution_m": [None, 4e-8]}
    fig = viz.show_estimate(replace(estimate, source={"resolution": notes}))
    found = panels(fig)
    curve, course = found["Two halves of 30 frames"], found["Resolution as the scan went on"]
    assert len(found) == 6 and fig.get_figwidth() > 16
    np.testing.assert_allclose(curve.lines[0].get_xydata()[:, 0], 1e-6 * frc.frequency_per_m)
    assert curve.lines[-1].get_xdata() == [1e-6 / 5e-8] * 2
    assert np.isnan(course.lines[0].get_ydata()[0]) and course.lines[0].get_xydata()[1].tolist() == pytest.approx(
        [30, 40]
    )
    assert course.get_legend().get_texts()[-1].get_text() == "wanted: 50 nm"


def test_halves_of_a_result_are_drawn_beside_it_and_not_in_the_live_view(estimate):
    frc = fourier_ring_correlation(estimate.object, estimate.object, PIXEL_M)
    noted = replace(estimate, source={"resolution": resolution_notes([ResolutionCheck(30, frc, PIXEL_M)])})
    curve = panels(viz.show_result(noted))["Two halves of 30 frames"]
    np.testing.assert_allclose(curve.lines[0].get_xydata()[:, 1], frc.correlation)
    assert len(panels(viz.show_estimate(noted))) == 4
    said = replace(estimate, source={"resolution": {"says": "too few frames"}})
    assert "Two halves" not in " ".join(panels(viz.show_result(said)))


def test_uncovered_pixels_are_masked_and_the_mean_phase_is_gone(estimate):
    phase = shown(panels(viz.show_estimate(estimate))["Phase"]).get_array()
    assert np.array_equal(np.ma.getmaskarray(phase), estimate.coverage == 0)
    assert np.angle(np.sum(np.exp(1j * phase.compressed()))) == pytest.approx(0, abs=1e-3)


def test_path_is_drawn_where_it_was_measured_in_order(estimate):
    ax = panels(viz.show_estimate(estimate))["Coverage and path"]
    assert np.allclose(ax.lines[0].get_xydata(), 1e6 * estimate.positions_m[:, ::-1])
    assert ax.collections[0].get_array().tolist() == list(range(1, 10))


def test_a_given_figure_is_drawn_anew(estimate):
    fig = Figure()
    fig.subplots(3, 3)
    assert viz.show_estimate(estimate, fig) is fig
    assert viz.show_estimate(estimate, fig) is fig
    assert len(panels(fig)) == 4


def test_wrapping_phase_gets_a_cyclic_scale(estimate):
    assert shown(panels(viz.show_estimate(estimate))["Phase"]).get_cmap().name == "RdBu_r"
    y = np.indices(estimate.object.shape)[0]
    winding = replace(estimate, object=np.exp(0.4j * y).astype(np.complex64))
    image = shown(panels(viz.show_estimate(winding))["Phase"])
    assert image.get_cmap().name == "twilight"
    assert image.get_clim() == pytest.approx((-np.pi, np.pi))


def test_an_estimate_without_coverage_or_path_is_drawn(estimate, tmp_path):
    empty = replace(estimate, n_frames=0, coverage=0 * estimate.coverage, positions_m=np.empty((0, 2)))
    viz.save_figure(viz.show_estimate(empty), tmp_path / "empty.png")


def test_demo_compares_on_one_scale(estimate):
    reference = np.exp(0.05j) * estimate.object
    fig = viz.figure_demo(
        estimate, reference, aligned=estimate.object, path_m=estimate.positions_m, table=TABLE, title="A star"
    )
    found = panels(fig)
    assert list(found) == [
        "Reference phase",
        "Reconstructed phase",
        "Absolute phase error",
        "Reconstructed amplitude",
        "Predicted phase error",
        "Coverage and path",
    ]
    assert shown(found["Reference phase"]).get_clim() == shown(found["Reconstructed phase"]).get_clim()
    error = shown(found["Absolute phase error"])
    assert error.get_clim() == shown(found["Predicted phase error"]).get_clim()
    assert error.get_array().compressed() == pytest.approx(0.05, abs=1e-5)
    assert fig.get_suptitle() == "A star"
    texts = {text.get_text() for ax in fig.axes for text in ax.texts}
    assert texts == set(TABLE) | set(TABLE.values())


def test_demo_marks_positions_by_reason(estimate):
    path = estimate.positions_m
    proposals = [
        Proposal(path[:4] + 3e-9, np.ones(4), "sobol", "fill"),
        Proposal(path[4:8], np.ones(4), "variance", "adapt"),
        Proposal(np.empty((0, 2)), np.empty(0), "variance", "budget spent"),
    ]
    fig = viz.figure_demo(estimate, None, aligned=None, path_m=path, table=TABLE, title="t", proposals=proposals)
    legend = panels(fig)["Coverage and path"].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["fill (4)", "adapt (4)", "not proposed (1)"]


def test_nothing_in_the_demo_overlaps(estimate):
    fig = viz.figure_demo(
        estimate, estimate.object, aligned=estimate.object, path_m=estimate.positions_m, table=TABLE, title="A star"
    )
    fig.draw_without_rendering()
    boxes = [ax.get_tightbbox() for ax in panels(fig).values()]
    boxes += [text.get_window_extent() for ax in fig.axes for text in ax.texts]
    for k, box in enumerate(boxes):
        assert min(box.x0, box.y0) >= 0 and box.x1 <= 1600 and box.y1 <= 1000
        assert not any(box.overlaps(other) for other in boxes[k + 1 :])


def test_demo_refuses_another_grid(estimate):
    with pytest.raises(ValueError, match="reference must have the estimate's shape"):
        viz.figure_demo(
            estimate, np.ones((5, 5)), aligned=None, path_m=estimate.positions_m, table=TABLE, title="A star"
        )


def test_save_writes_all_or_nothing(estimate, tmp_path):
    fig, path = viz.show_estimate(estimate), tmp_path / "figure.png"
    viz.save_figure(fig, path)
    before = path.read_bytes()
    assert before.startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="nonsense"):
        viz.save_figure(fig, tmp_path / "figure.nonsense")
    fig.savefig = lambda partial, format: (partial.write_bytes(b"half"), 1 / 0)
    with pytest.raises(ZeroDivisionError):
        viz.save_figure(fig, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["figure.png"]


@pytest.fixture
def pair():
    """Two images of one sample whose common part ends at a fifth of a cycle per pixel, and their arguments."""
    rng = np.random.default_rng(1)
    noise = np.fft.fft2(rng.normal(size=(3, 60, 80)))
    low = np.hypot(np.fft.fftfreq(60)[:, None], np.fft.fftfreq(80)) < 0.2
    a, b = (np.exp(0.3j * np.fft.ifft2(np.where(low, noise[0], noise[k])).real) for k in (1, 2))
    mask = np.zeros((60, 80), bool)
    mask[10:50, 20:70] = True
    frc = fourier_ring_correlation(a[10:50, 25:65], b[10:50, 25:65], PIXEL_M)
    return a, b, mask, frc, {"origin_m": (-6e-7, -8e-7), "pixel_m": PIXEL_M, "square_px": (10, 25, 40)}


def test_comparison_shows_both_phases_on_one_scale_and_their_difference(pair):
    a, b, mask, frc, place = pair
    found = panels(viz.show_comparison(a, 1.1 * b, mask, frc, names=("first", "second"), **place))
    assert list(found) == ["Phase, first", "Phase, second", "Absolute phase difference", "FRC, in the square"]
    first, second, difference = (shown(ax) for ax in list(found.values())[:3])
    assert first.get_clim() == second.get_clim()
    for image, phase in ((first, a), (second, b)):
        gauge = np.conj((b * mask).sum())
        assert np.array_equal(np.ma.getmaskarray(image.get_array()), ~mask)
        assert image.get_array().compressed() == pytest.approx(np.angle(phase * gauge)[mask])
    assert difference.get_array().compressed() == pytest.approx(np.abs(np.angle(a * b.conj()))[mask])
    (square,) = found["Absolute phase difference"].patches
    # Pixel [10, 25] begins half a pixel before its centre, at (-6e-7 + 10 * 2e-8, -8e-7 + 25 * 2e-8) m.
    assert square.get_xy() == pytest.approx((-0.31, -0.41)) and square.get_width() == pytest.approx(0.8)


def test_comparison_draws_the_ring_correlation_over_inverse_micrometres(pair):
    a, b, mask, frc, place = pair
    ax = panels(viz.show_comparison(a, b, mask, frc, **place))["FRC, in the square"]
    curve, *_ = ax.lines
    assert np.allclose(curve.get_xydata(), np.stack([1e-6 * frc.frequency_per_m, frc.correlation], axis=1))
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    half_nm, one_nm = (1e9 * r for r in (frc.resolution_half_bit_m, frc.resolution_one_bit_m))
    assert labels == ["correlation", f"half-bit: {half_nm:.3g} nm", f"one-bit: {one_nm:.3g} nm"]
    (upper,) = ax.child_axes
    for place_um, label in zip(upper.get_xticks(), upper.get_xticklabels(), strict=True):
        assert place_um == pytest.approx(1e3 / float(label.get_text()))
    assert 3 <= len(upper.get_xticks()) <= 8


@pytest.mark.parametrize(("resolution_m", "said"), [(None, "not crossed"), (np.inf, "never reached")])
def test_comparison_without_a_crossing_says_so(pair, resolution_m, said):
    a, b, mask, frc, place = pair
    frc = replace(frc, resolution_half_bit_m=resolution_m, resolution_one_bit_m=resolution_m)
    fig = viz.show_comparison(a, b, mask, frc, against_truth=True, **place)
    fig.draw_without_rendering()
    legend = panels(fig)["FRC with the truth, in the square"].get_legend()
    assert [text.get_text() for text in legend.get_texts()][1:] == [f"half-bit: {said}", f"one-bit: {said}"]


@pytest.mark.parametrize("pixel_m", [1e-10, 3e-8, 1.79e-7, 2e-5])
def test_comparison_has_upper_ticks_at_any_pixel(pair, pixel_m):
    a, b, mask, _, place = pair
    frc = fourier_ring_correlation(a[10:50, 25:65], b[10:50, 25:65], pixel_m)
    fig = viz.show_comparison(a, b, mask, frc, **{**place, "pixel_m": pixel_m})
    (upper,) = panels(fig)["FRC, in the square"].child_axes
    assert 3 <= len(upper.get_xticks()) <= 8


def test_comparison_refuses_images_of_two_shapes(pair):
    a, b, mask, frc, place = pair
    with pytest.raises(ValueError, match="must be of one shape"):
        viz.show_comparison(a, b[1:], mask, frc, **place)


def test_images_side_by_side_share_the_scales_of_the_first(pair):
    a, b, mask, _, place = pair
    where = {key: place[key] for key in ("origin_m", "pixel_m")}
    found = panels(viz.show_images({"truth": a, "found": 0.9 * b}, mask, **where))
    first, second = shown(found["truth"]), shown(found["found"])
    assert first.get_clim() == second.get_clim()
    gauge = np.conj((a * mask).sum())
    # Cut to the mask, whose first pixel's centre is at (-6e-7 + 10 * 2e-8, -8e-7 + 20 * 2e-8) m.
    assert second.get_array().shape == (40, 50)
    assert second.get_array().compressed() == pytest.approx(np.angle(b * gauge)[mask])
    assert second.get_extent() == pytest.approx((-0.41, 0.59, 0.39, -0.41))


def test_images_side_by_side_are_of_the_masks_shape(pair):
    a, b, mask, _, place = pair
    with pytest.raises(ValueError, match="must have the mask's shape"):
        viz.show_images({"truth": a, "found": b[1:]}, mask, origin_m=place["origin_m"], pixel_m=PIXEL_M)


def single_shot_image(support, pixel_m=PIXEL_M):
    return SingleShotImage(
        frames=(3,),
        object=np.where(support, 2 * np.exp(0.3j), 0).astype(np.complex64),
        support=support,
        r_factor=np.array([0.2, 0.05, np.nan]),
        noise_r_factor=0.04,
        status=("stagnated", "converged", "diverged"),
        best=1,
        transfer=np.linspace(1, 0, 17),
        unmeasured_share=0.0,
        history=np.array([[0.6, 0.6, 0.6], [0.2, 0.05, np.nan]]),
        iterations=10,
        pixel_m=pixel_m,
    )


@pytest.mark.parametrize(("pixel_m", "unit", "step"), [(PIXEL_M, "µm", 0.02), (None, "px", 1.0)])
def test_a_single_shot_figure_shows_what_was_found(pixel_m, unit, step):
    y, x = np.indices((32, 32)) - 16
    counts, mask = np.full((32, 32), 9.0), np.ones((32, 32), bool)
    mask[16, 16], counts[16, 16] = False, np.nan
    image = single_shot_image(np.hypot(y, x) < 5, pixel_m)
    found = panels(viz.show_single_shot(image, counts, mask, title="a title"))
    frame = shown(found["Frame"]).get_array()
    assert frame.mask.sum() == 1 and frame.mask[16, 16]
    np.testing.assert_allclose(frame.compressed(), 1.0)
    amplitude = shown(found["Amplitude"])
    assert amplitude.get_array().max() == pytest.approx(2.0, rel=1e-6)
    # Pixel N // 2 is at the origin.
    half = amplitude.get_array().shape[0] // 2
    low, high = -(half + 0.5) * step, (half - 0.5) * step
    assert amplitude.get_extent() == pytest.approx([low, high, high, low])
    assert found["Amplitude"].get_xlabel() == f"x ({unit})"
    phase = shown(found["Phase, inside the support"]).get_array()
    np.testing.assert_allclose(phase.compressed(), 0, atol=1e-6)
    assert phase.count() == image.support.sum() == shown(found["Support"]).get_array().sum()
    # Half-way between the rings 16 (1 - 1/e) is where the line falls below 1/e.
    lines = found["Phase retrieval transfer function"].lines
    assert lines[-1].get_xdata()[0] == pytest.approx(16 * (1 - 1 / np.e))
    assert len(found["R-factor of all starts"].lines) == 4


def test_a_single_shot_figure_of_darkness_is_drawn():
    """What diverged has no support and no object."""
    image = single_shot_image(np.zeros((32, 32), bool))
    found = panels(viz.show_single_shot(image, np.ones((32, 32)), np.ones((32, 32), bool)))
    assert not shown(found["Support"]).get_array().any()
    with pytest.raises(ValueError, match=r"must have the object's shape \(32, 32\)"):
        viz.show_single_shot(image, np.ones((8, 8)), np.ones((8, 8), bool))


def test_show_object_is_cut_to_the_measured_area_with_row_0_above(estimate):
    fig = viz.show_object(estimate, "scan 7")
    found = panels(fig)
    assert list(found) == ["Phase", "Amplitude"]
    covered = estimate.coverage > 0
    amplitude = shown(found["Amplitude"])
    assert amplitude.origin == "upper"
    np.testing.assert_allclose(amplitude.get_array(), abs(estimate.object)[covered].reshape(49, 59))
    phase = shown(found["Phase"]).get_array()
    assert abs(np.angle(np.exp(1j * phase).mean())) < 1e-6
    (bar,) = (each for each in found["Phase"].artists if hasattr(each, "size_bar"))
    assert bar.size_bar.get_children()[0].get_width() * PIXEL_M == pytest.approx(2e-7)
    assert bar.txt_label.get_text() == "200 nm"
    assert fig.get_suptitle() == "scan 7, 9 frames, nominal pixel 20 nm"


def test_latents_are_painted_in_the_colours_of_their_frames(estimate):
    """Two groups, left and right; the frame that stands for a group is drawn with its pattern, those of others not."""
    right = estimate.positions_m[:, 1] > 0
    values = np.where(right, 5.0, -5.0)[:, None] + 0.1 * np.random.default_rng(0).normal(size=(9, 3))
    found = latents_of(replace(estimate, embedding=values.astype(np.float32)), clusters=2)
    (one, other) = estimate.frame_seq_nums[representatives(found.values, found.clusters)]
    fig = viz.show_latents(estimate, found, {int(one): np.full((8, 8), 3.0)}, "scan 7")
    titles = list(panels(fig))
    assert titles[:2] == ["Latents 1, 2, 3 as red, green, blue", "Groups of frames, on the phase"]
    assert titles[4:] == [f"A: frame {one}\n1.92e+02 counts"]
    painted = shown(fig.axes[0]).get_array()
    covered = np.isfinite(paint_frames(estimate, found.colours)).all(axis=-1) & (estimate.coverage > 0)
    np.testing.assert_allclose(painted[covered], paint_frames(estimate, found.colours)[covered], atol=1e-6)
    legend = fig.axes[1].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["A (6)", "B (3)"]
    # Each group is shown as the frame that stands for it, not as its first.
    typical = found.colours[representatives(found.values, found.clusters)]
    np.testing.assert_allclose([each.get_facecolor()[0, :3] for each in legend.legend_handles], typical, atol=1e-6)
    assert fig.get_suptitle() == "scan 7, 9 frames, projection of this run alone"
    assert other != one


@pytest.mark.parametrize(
    ("width_m", "length_m", "said"),
    [
        (1e-6, 2e-7, "200 nm"),
        (4e-6, 1e-6, "1 µm"),
        (4e-3, 1e-3, "1 mm"),
        (2e-9, 5e-10, "0.5 nm"),
        (1.7e-5, 5e-6, "5 µm"),
    ],
)
def test_scale_bars_have_round_lengths(width_m, length_m, said):
    from bluesky_cdi.viz.objects import bar_length_m, said_length

    assert bar_length_m(width_m) == pytest.approx(length_m)
    assert said_length(bar_length_m(width_m)) == said


def test_a_result_is_drawn_with_all_that_is_looked_at_before_it_is_believed(estimate):
    rng = np.random.default_rng(1)
    valid = np.ones((8, 8), bool)
    valid[0, 7] = False
    fit = FittedFrame(4, rng.poisson(9.0, (8, 8)).astype(np.float32), np.full((8, 8), 9.0), valid, 1.0, 1.0414)
    probe = np.concatenate([3 * estimate.probe, estimate.probe])
    fig = viz.show_result(replace(estimate, probe=probe), "scan 7", viz.Course("update", [5.0, 0.25], [4, 9]), fit)
    found = panels(fig)
    assert list(found) == [
        *("Phase", "Amplitude", "Predicted phase error", "Pattern of frame 4"),
        *("Probe, amplitude of its 2 modes", "Probe, phase of the strongest mode (90 %)"),
        *("Convergence: 0.25 after 2 updates", "Its fit: deviance 1.04 per pixel"),
    ]
    assert fig.get_suptitle() == "scan 7, 9 frames, nominal pixel 20 nm"
    images = {title: shown(ax) for title, ax in found.items() if ax.images}
    assert {image.origin for image in images.values()} == {"upper"}
    assert {images[title].get_cmap().name for title in ("Phase", "Amplitude")} == {"gray"}
    pattern, fitted = images["Pattern of frame 4"], images["Its fit: deviance 1.04 per pixel"]
    assert pattern.norm is fitted.norm
    np.testing.assert_array_equal(np.ma.getmaskarray(pattern.get_array()), ~valid)
    with_bar = [title for title, ax in found.items() if any(hasattr(each, "size_bar") for each in ax.artists)]
    assert with_bar == [title for title in found if title.startswith(("Ph", "Am", "Pre", "Pro"))]
    curve = found["Convergence: 0.25 after 2 updates"]
    assert curve.lines[0].get_ydata().tolist() == [5.0, 0.25] and curve.get_yscale() == "log"


def test_a_notebook_draws_a_figure_by_itself(estimate):
    assert viz.show_result(estimate)._repr_png_().startswith(b"\x89PNG")
