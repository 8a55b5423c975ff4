"""The live view: draws in the right thread, not too often, and never fails its caller."""

import logging
import threading

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from bluesky_cdi import viz
from bluesky_cdi.callbacks import LiveReconstruction
from bluesky_cdi.protocols import Estimate


def make_estimate(n: int) -> Estimate:
    rng = np.random.default_rng(n)
    shape = (24, 20)
    return Estimate(
        n_frames=n,
        object=np.exp(1j * rng.uniform(-1, 1, shape)).astype(np.complex64),
        origin_m=(0.0, 0.0),
        pixel_m=1e-8,
        probe=np.ones((1, 8, 8), np.complex64),
        std_amplitude=np.full(shape, 0.1, np.float32),
        std_phase_rad=np.full(shape, 0.1, np.float32),
        coverage=np.ones(shape, np.float32),
        frame_seq_nums=np.arange(1, n + 1),
        positions_m=rng.uniform(5e-8, 1.5e-7, (n, 2)),
        embedding=np.zeros((n, 2), np.float32),
        frame_uncertainty=np.full(n, 0.1, np.float32),
        residual=np.ones(n, np.float32),
        novelty=np.ones(n, np.float32),
    )


@pytest.fixture(autouse=True)
def no_windows():
    before = matplotlib.get_backend()
    matplotlib.use("Agg")
    yield
    matplotlib.use(before)


@pytest.fixture
def drawn(monkeypatch):
    """Record what is drawn, and in which thread, instead of drawing."""
    calls = []
    monkeypatch.setattr(
        viz, "show_estimate", lambda estimate, fig=None: calls.append((estimate.n_frames, threading.current_thread()))
    )
    return calls


def in_thread(call, *args):
    thread = threading.Thread(target=call, args=args)
    thread.start()
    thread.join()
    return thread


def test_shows_the_four_images_and_the_path():
    view = LiveReconstruction()
    view(make_estimate(5))
    assert isinstance(view.figure, Figure)
    images = [ax for ax in view.figure.axes if ax.images]
    assert len(images) == 4
    path = [line for ax in images for line in ax.lines]
    np.testing.assert_allclose(path[0].get_xdata(), 1e6 * make_estimate(5).positions_m[:, 1])
    first = view.figure
    view.draw()
    assert view.figure is first


def test_figure_is_the_users():
    figure = Figure()
    LiveReconstruction(figure=figure)(make_estimate(3))
    assert figure.axes


def test_without_windows_draws_in_the_calling_thread(drawn):
    view = LiveReconstruction()
    assert drawn == [] and (thread := in_thread(view, make_estimate(4)))
    assert drawn == [(4, thread)]


def test_throttle_keeps_the_newest(drawn):
    view = LiveReconstruction(min_interval_s=1000.0)
    for n in (1, 2, 3):
        view(make_estimate(n))
    assert [n for n, _ in drawn] == [1]
    view.draw()
    view.draw()
    assert [n for n, _ in drawn] == [1, 3]


def test_other_toolkits_are_drawn_by_the_main_thread_only(drawn, monkeypatch):
    view = LiveReconstruction(figure=Figure())
    monkeypatch.setattr(matplotlib, "get_backend", lambda: "TkAgg")
    in_thread(view, make_estimate(2))
    assert drawn == []
    view.draw()
    assert drawn == [(2, threading.main_thread())]


def test_qt_is_handed_to_the_main_thread(drawn, monkeypatch):
    """With a stand-in for Bluesky's teleporter: the drawing goes through it, as (name, dict, callback)."""
    from bluesky.callbacks import mpl_plotting

    sent = []

    class Teleporter:
        class name_doc_escape:
            @staticmethod
            def emit(name, doc, callback):
                sent.append((name, doc, callback))

    monkeypatch.setattr(matplotlib, "get_backend", lambda: "qtagg")
    monkeypatch.setattr(mpl_plotting, "_get_teleporter", Teleporter)
    view = LiveReconstruction(figure=Figure())
    in_thread(view, make_estimate(6))
    assert drawn == []
    ((name, doc, callback),) = sent
    assert isinstance(doc, dict)
    callback(name, doc, escape=True)
    assert drawn == [(6, threading.main_thread())]


def test_fault_while_drawing_is_logged_not_raised(monkeypatch, caplog):
    def broken(estimate, fig=None):
        raise RuntimeError("no ink")

    monkeypatch.setattr(viz, "show_estimate", broken)
    with caplog.at_level(logging.ERROR, logger="bluesky_cdi"):
        LiveReconstruction()(make_estimate(2))
    assert "no ink" in caplog.text
