"""Fly scans through a RunEngine: simulated devices on a clock that the RunEngine's waiting moves on."""

import json
import logging
from collections import Counter

import bluesky.preprocessors as bpp
import numpy as np
import pytest
from bluesky.suspenders import SuspendBoolLow
from bluesky.utils import FailedStatus, Msg, RunEngineInterrupted
from ophyd import Signal

from bluesky_cdi.callbacks import FrameAssembler
from bluesky_cdi.errors import GeometryError
from bluesky_cdi.plans import _fly, adaptive_ptycho, ptycho_fly, ptycho_raster
from bluesky_cdi.plans._flights import check_rate, line_spiral, pieces, resting, through
from bluesky_cdi.plans._keep_out import KeepOut
from bluesky_cdi.sim_devices import (
    Beam,
    ManualClock,
    OutOfRangeError,
    SimFlyDetector,
    SimScanner,
    SimShutter,
    SimStage,
    TriggerLine,
)

UM = 1e-6
WINDOW = {"extent_um": (0.6, 0.9), "step_um": 0.3}
# Three lines of four, to and fro.
RASTER = [[y, x] for y, xs in ((-0.3, 1), (0.0, -1), (0.3, 1)) for x in (-0.45, -0.15, 0.15, 0.45)[::xs]]
RATE = {"rate_hz": 100.0, "exposure_s": 0.002}


class NumberedSource:
    """Frames whose pixels are their number, and whose middle position is kept."""

    frame_shape = (4, 4)
    frame_dtype = np.dtype("<u2")

    def __init__(self):
        self.positions_m = []

    def expose(self, position_m, exposure_s, flux):
        return self.expose_along(np.array([[position_m]]), exposure_s, np.array([flux]))[0]

    def expose_along(self, paths_m, exposure_s, flux):
        self.positions_m.extend(paths_m[:, paths_m.shape[1] // 2])
        last = len(self.positions_m)
        return np.arange(last - len(paths_m) + 1, last + 1, dtype="<u2")[:, None, None] * np.ones((4, 4), "<u2")


class Sink:
    def __init__(self):
        self.frames, self.left_out, self.errors, self.ends = {}, {}, [], []

    def start_run(self, info):
        self.frames, self.left_out = {}, {}

    def put(self, frame):
        self.frames[frame.seq_num] = frame
        self.left_out.pop(frame.seq_num, None)

    def leave_out(self, seq_num, error):
        self.left_out[seq_num] = error

    def end_run(self, exit_status, reason, notes):
        self.ends.append(exit_status)

    def fail(self, error, start):
        self.errors.append(error)


class Line:
    """A beamline on a manual clock, which moves on by 20 ms whenever the RunEngine waits."""

    def __init__(self, RE, directory, dropped=(), **scanner):
        self.clock, self.RE = ManualClock(), RE
        line, self.source, self.shutter = TriggerLine(), NumberedSource(), SimShutter(name="shutter")
        self.shutter.put("closed")
        limits = ((-0.5, 0.5), (-0.5, 0.5))
        self.stage = SimStage(name="stage", clock=self.clock, limits_um=limits, velocity_um_per_s=1e3)
        self.diff = SimFlyDetector(
            name="diff", source=self.source, beam=Beam(is_open=lambda: self.shutter.is_open), line=line,
            clock=self.clock, position_m=lambda: self.stage.position_m, directory=directory, dropped=dropped,
        )  # fmt: skip
        self.scanner = SimScanner(
            name="scanner", stage=self.stage, line=line, directory=directory, clock=self.clock, **scanner
        )
        self.sink, self.docs, self.when = Sink(), [], None
        RE.subscribe(lambda name, doc: self.docs.append((name, doc)))
        RE.subscribe(FrameAssembler(self.sink))
        RE.msg_hook = self._look

    def _look(self, message):
        if message.command == "wait":
            self.clock.advance(0.02)
        if self.when is not None and self.when[0](message):
            action, self.when = self.when[1], None
            action()

    def fly(self, **options):
        return ptycho_fly(
            [self.diff], self.stage.y, self.stage.x, self.scanner, shutter=self.shutter, **WINDOW, **RATE | options
        )

    def adaptive(self, live, **options):
        return adaptive_ptycho(
            [self.diff], self.stage.y, self.stage.x, live, shutter=self.shutter,
            **{**WINDOW, **RATE, "scanner": self.scanner, "budget": 8, "batch": 4, "decision_timeout_s": 600.0}
            | options,
        )  # fmt: skip

    @property
    def measured_um(self):
        """Positions of the frames that came, by number, micrometres."""
        return np.array([self.sink.frames[k].position_m for k in sorted(self.sink.frames)]) / UM

    def of(self, kind, stream=None):
        names = {doc["uid"]: doc["name"] for name, doc in self.docs if name == "descriptor"}
        return [
            doc for name, doc in self.docs if name == kind and (stream is None or names[doc["descriptor"]] == stream)
        ]

    def assert_paired(self):
        """Each frame has the position at which it was made."""
        for frame in self.sink.frames.values():
            np.testing.assert_allclose(frame.position_m, self.source.positions_m[frame.counts[0, 0] - 1], atol=1e-13)


@pytest.fixture
def line(RE, tmp_path, monkeypatch):
    # The clock goes on with each look of the plan: it need not wait for real time between them.
    monkeypatch.setattr(_fly, "FLUSH_S", 0.005)
    made = []

    def make(**options):
        made.append(Line(RE, tmp_path, **options))
        return made[-1]

    yield make
    RE.msg_hook = None


def nth(command, number):
    """Tell the n-th message of a command from the others."""
    seen = Counter()

    def is_it(message):
        seen[message.command] += message.command == command
        return message.command == command and seen[command] == number

    return is_it


def paused(plan, when):
    """Insert a pause after a message."""
    return bpp.plan_mutator(
        plan, lambda message: (None, (each for each in [Msg("pause")])) if when(message) else (None, None)
    )


def test_a_raster_is_flown_and_frames_have_their_positions(RE, line):
    beamline = line()
    assert RE(beamline.fly()).plan_result == "complete"
    np.testing.assert_allclose(beamline.measured_um, RASTER, atol=1e-3)
    beamline.assert_paired()
    assert not beamline.sink.left_out and beamline.sink.ends == ["success"]


def test_what_the_run_says(RE, line):
    beamline = line()
    RE(beamline.fly(md={"sample": "star"}))
    (start,), (stop,) = beamline.of("start"), beamline.of("stop")
    assert start["position_stream"] == "positions" and start["frame_number_key"] == "diff_number"
    assert start["num_points"] == start["budget"] == stop["num_events"]["primary"] == 12
    assert start["motors"] == ["stage_y", "stage_x"] and start["sample"] == "star"
    # 0.3 um in 10 ms, for 2 ms; half of it at both ends, where the stage rests.
    assert start["smear_m"] == pytest.approx(0.06 * UM)
    assert json.loads(json.dumps(start["plan_args"]))["scanner"] == "scanner"
    (dose,) = beamline.of("event", "dose")
    assert dose["data"]["dose_openings"] == 1 and dose["data"]["dose_open_s"] > 0
    assert not beamline.shutter.is_open


def test_documents_come_while_it_flies(RE, line):
    beamline = line()
    RE(beamline.fly())
    blocks = [doc["indices"] for doc in beamline.of("stream_datum", "primary")]
    assert len(blocks) >= 3 * 4  # three blocks of four keys


def test_late_positions(RE, line):
    beamline = line(latency_s=0.05)
    RE(beamline.fly())
    np.testing.assert_allclose(beamline.measured_um, RASTER, atol=1e-3)
    beamline.assert_paired()


def test_dropped_frames_shift_nothing(RE, line, caplog):
    beamline = line(dropped=(5, 6))
    RE(beamline.fly())
    assert "10 of 12 frames of a flight came" in caplog.text
    assert "2 frame(s) were dropped by the detector, by its own count: 5, 6" in caplog.text
    np.testing.assert_allclose(beamline.measured_um, np.delete(RASTER, [4, 5], axis=0), atol=1e-3)
    beamline.assert_paired()


def test_a_step_scan_after_a_fly_scan_and_a_fly_scan_after_that(RE, line):
    beamline = line()
    RE(beamline.fly())
    step = ptycho_raster([beamline.diff], beamline.stage.y, beamline.stage.x, shutter=beamline.shutter, **WINDOW)
    # Of what the RunEngine waits for, moves end with the clock, and exposures of no time by themselves.
    RE(step)
    np.testing.assert_allclose(beamline.measured_um, RASTER, atol=1e-9)
    assert len(beamline.sink.frames) == 12
    RE(beamline.fly())
    beamline.assert_paired()
    assert beamline.sink.ends == ["success"] * 3 and not beamline.sink.errors


def test_an_abort_closes_the_shutter_counts_the_dose_and_keeps_what_was_measured(RE, line):
    beamline = line()
    with pytest.raises(RunEngineInterrupted):
        RE(paused(beamline.fly(), nth("collect", 6)))
    assert not beamline.shutter.is_open
    RE.abort("enough")
    assert not beamline.shutter.is_open and not beamline.stage.x.moving
    (stop,), (dose,) = beamline.of("stop"), beamline.of("event", "dose")
    assert stop["exit_status"] == "abort" and stop["num_events"]["dose"] == 1
    assert dose["data"]["dose_open_s"] > 0
    assert 0 < len(beamline.sink.frames) < 12
    beamline.assert_paired()


def test_a_fault_ends_the_run_in_order_and_the_next_one_is_sound(RE, line):
    beamline = line()
    broken = RuntimeError("disk full")

    def spoil():
        def append(blocks):
            raise broken

        beamline.diff._flight_file.append = append

    beamline.when = (nth("kickoff", 2), spoil)
    with pytest.raises(FailedStatus):
        RE(beamline.fly())
    assert not beamline.shutter.is_open and beamline.sink.ends in ([], ["fail"])
    assert beamline.of("stop")[0]["exit_status"] == "fail"
    RE(beamline.fly())
    np.testing.assert_allclose(beamline.measured_um, RASTER, atol=1e-3)
    assert beamline.sink.ends[-1] == "success"


def test_a_lost_beam_suspends_the_flight_and_it_is_flown_again_without_the_dark_frames(RE, line):
    beamline = line()
    beam = Signal(name="beam", value=1)
    RE.install_suspender(SuspendBoolLow(beam))

    def lose():
        beam.put(0)
        RE.loop.call_later(0.05, beam.put, 1)

    beamline.when = (nth("collect", 6), lose)
    RE(beamline.fly())
    # Twelve numbers, although some frames were measured twice: the last ones count.
    assert sorted(beamline.sink.frames) == list(range(1, 13))
    np.testing.assert_allclose(beamline.measured_um, RASTER, atol=1e-3)
    assert len(beamline.source.positions_m) == 24
    assert all(frame.counts[0, 0] > 12 for frame in beamline.sink.frames.values())
    beamline.assert_paired()
    (dose,) = beamline.of("event", "dose")
    assert dose["data"]["dose_openings"] == 2 and not beamline.shutter.is_open


def test_batches_are_flown_at_rest_and_the_agent_is_asked_by_frames(RE, line, script, propose):
    beamline = line()
    first, second = [[-0.3, -0.45], [0.3, 0.45], [0.0, 0.15], [0.3, -0.15]], [[0.0, 0.45], [-0.3, 0.15], [0.3, 0.15]]
    live = script(propose(first), propose(second), propose([], "nothing more to learn"))
    assert RE(beamline.adaptive(live)).plan_result == "nothing more to learn"
    np.testing.assert_allclose(beamline.measured_um, first + second, atol=1e-6)
    assert [after for _, after in live.asked] == [0, 0, 4]
    beamline.assert_paired()
    assert len(beamline.of("descriptor")) == 4  # primary, positions, agent, dose


def test_a_batch_that_lost_frames_is_asked_about_by_those_that_came(RE, line, script, propose):
    beamline = line(dropped=(2,))
    live = script(propose(RASTER[:4]), propose(RASTER[4:8]), propose([], "over"))
    RE(beamline.adaptive(live, budget=12))
    assert [after for _, after in live.asked] == [0, 0, 3]


def test_a_lost_beam_suspends_an_adaptive_scan_and_the_tripping_batch_is_taken_again(RE, line, script, propose):
    beamline = line()
    beam = Signal(name="beam", value=1)
    RE.install_suspender(SuspendBoolLow(beam))
    live = script(propose(RASTER[:4]), propose(RASTER[4:8]), propose([], "over"))

    def lose():
        beam.put(0)
        RE.loop.call_later(0.05, beam.put, 1)

    beamline.when = (nth("collect", 3), lose)
    assert RE(beamline.adaptive(live, budget=12)).plan_result == "over"
    assert sorted(beamline.sink.frames) == list(range(1, 9))
    np.testing.assert_allclose(beamline.measured_um, RASTER[:8], atol=1e-6)
    assert [after for _, after in live.asked] == [0, 0, 4]
    beamline.assert_paired()


def test_a_lost_beam_suspends_an_adaptive_step_scan_and_the_tripping_point_is_taken_again(RE, line, script, propose):
    beamline = line()
    beam = Signal(name="beam", value=1)
    RE.install_suspender(SuspendBoolLow(beam))
    live = script(propose(RASTER[:4]), propose(RASTER[4:8]), propose([], "over"))

    def lose():
        beam.put(0)
        RE.loop.call_later(0.05, beam.put, 1)

    beamline.when = (nth("trigger", 3), lose)
    assert RE(beamline.adaptive(live, budget=12, scanner=None)).plan_result == "over"
    assert [event["seq_num"] for event in beamline.of("event", "primary")] == list(range(1, 9))
    np.testing.assert_allclose(beamline.measured_um, RASTER[:8], atol=1e-9)
    assert not beamline.sink.left_out and all(frame.counts.any() for frame in beamline.sink.frames.values())
    (dose,) = beamline.of("event", "dose")
    assert dose["data"]["dose_openings"] == 2 and not beamline.shutter.is_open


def test_trajectories_end_before_a_box_and_go_on_behind_it(RE, line, caplog):
    beamline = line()
    beamline.stage.y.restrict((-0.5, 0.5), -0.4)
    box = ((-0.1, -0.2), (0.1, 0.2))
    RE(beamline.fly(keep_out_um=[box]))
    kept = [point for point in RASTER if not (abs(point[0]) < 0.1 and abs(point[1]) < 0.2)]
    assert len(kept) == 10
    np.testing.assert_allclose(beamline.measured_um, kept, atol=1e-3)
    assert "2 positions lie where the probe must not go" in caplog.text
    # Neither the samples of the encoders nor the moves between flights were ever in it.
    assert not beamline.sink.left_out
    assert beamline.of("start")[0]["plan_args"]["keep_out_um"] == [[[-0.1, -0.2], [0.1, 0.2]]]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"rate_hz": 0.0}, "rate above 0 Hz"),
        ({"exposure_s": 0.02}, "below a period"),
        ({"pattern": "zigzag"}, "raster, spiral"),
        ({"keep_out_um": [((-1, -1), (1, 1))]}, "all 12 positions"),
        ({"keep_out_um": [((1, 1), (-1, -1))]}, "low corner first"),
    ],
)
def test_bad_arguments(RE, line, options, match):
    beamline = line()
    with pytest.raises(GeometryError, match=match):
        RE(beamline.fly(**options))
    assert not beamline.docs


def test_limits_are_asked_before_anything_moves(RE, line, script):
    beamline = line()
    beyond = {"centre_um": (0.0, 0.3)}
    plans = [
        beamline.fly(**beyond),
        beamline.adaptive(script(), **beyond),
        ptycho_raster([beamline.diff], beamline.stage.y, beamline.stage.x, **WINDOW, **beyond),
    ]
    for plan in plans:
        with pytest.raises(OutOfRangeError, match=r"stage_x moves between -0\.5 and 0\.5"):
            RE(plan)
    assert not beamline.docs and beamline.stage.x.position == 0


def test_blur_is_told_before_the_run(RE, line, caplog):
    beamline = line()
    RE(beamline.fly(exposure_s=0.009))
    assert "moves by 0.27 um during each exposure, 90 % of the step" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        RE(beamline.fly(exposure_s=0.001))
    (told,) = (record for record in caplog.records if "of the step" in record.message)
    assert told.levelno == logging.INFO


class TestFlights:
    POINTS = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0], [3.0, 1.0]]) * UM

    def test_through(self):
        flight = through(self.POINTS, 0.01, 0.004)
        np.testing.assert_allclose(flight.at(flight.starts_s + 0.002), self.POINTS, atol=1e-15)
        np.testing.assert_allclose(np.diff(flight.starts_s), 0.01)
        assert flight.first_s >= 0 and flight.starts_s[-1] + 0.004 <= flight.duration_s
        # At the ends half of the exposure at rest; from line to line one half at each speed.
        np.testing.assert_allclose(flight.smear_m() / UM, [0.2, 0.4, 0.6, 0.4])

    def test_resting(self):
        flight = resting(self.POINTS, 0.01, 0.004, speed_m_per_s=100 * UM)
        np.testing.assert_allclose(flight.smear_m(), 0, atol=1e-18)
        np.testing.assert_allclose(flight.during_exposures(3)[:, 0], self.POINTS, atol=1e-15)
        assert flight.period_s == pytest.approx(0.004 + 0.02)
        speed = np.hypot(*np.diff(flight.positions_m, axis=0).T) / np.diff(flight.times_s)
        assert speed.max() <= 100.001 * UM

    def test_one_point(self):
        for make in (through, resting):
            flight = make(self.POINTS[:1], 0.01, 0.004)
            np.testing.assert_allclose(flight.during_exposures(1)[:, 0], self.POINTS[:1])
            assert not flight.smear_m().any()

    def test_a_spiral_has_even_steps(self):
        points = line_spiral((-1 * UM, -1 * UM), (1 * UM, 1 * UM), 0.2 * UM)
        steps = np.hypot(*np.diff(points, axis=0).T)
        np.testing.assert_allclose(steps[5:], 0.2 * UM, rtol=0.03)
        assert np.hypot(*points.T).max() <= 1 * UM
        assert len(points) == pytest.approx(np.pi / 0.2**2, rel=0.1)

    def test_pieces(self):
        box = KeepOut.of_um([((0.4, 0.9), (0.6, 1.1))])
        assert [len(piece) for piece in pieces(self.POINTS, box)] == [2, 2]
        assert [len(piece) for piece in pieces(self.POINTS, KeepOut(), 1.5 * UM)] == [3, 1]

    def test_rate(self):
        assert check_rate(1000.0, None, 0.9) == pytest.approx((1e-3, 9e-4))
