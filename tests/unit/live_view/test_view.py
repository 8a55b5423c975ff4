"""The live view: what it looks at, who draws, and that nobody waits for that."""

import io
import logging
import shutil
import threading
from concurrent.futures import Future
from multiprocessing import Pipe
from subprocess import CalledProcessError
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from bluesky_cdi.config import LiveViewConfig, load_config
from bluesky_cdi.errors import ConfigError, WorkerError
from bluesky_cdi.live_view import view as view_module
from bluesky_cdi.live_view.artist import Artist, serve
from bluesky_cdi.live_view.scene import Scene, pack_scene, unpack_scene
from bluesky_cdi.live_view.view import LiveView, why_no_window
from bluesky_cdi.packing import pack, unpack
from bluesky_cdi.plans._decisions import DecisionRecord
from bluesky_cdi.protocols import Proposal

LONG_S = 60.0


class Worker:
    """What is looked at, as the test lets it be."""

    def __init__(self):
        self.latest = None
        self.asked = []

    def look(self, after):
        answer = Future()
        self.asked.append((after, answer))
        return answer

    def gives(self, sight):
        """Answer the newest question, once there is one."""
        for _ in range(int(LONG_S / 0.01)):
            if self.asked and not self.asked[-1][1].done():
                self.asked[-1][1].set_result(sight)
                return
            threading.Event().wait(0.01)
        raise TimeoutError("nobody looks")


class Process:
    """Stands for the process that draws: a drawing is done when the test says so."""

    def __init__(self, settings, folder):
        self.settings, self.folder = settings, folder
        self.sent, self.before = [], Scene()
        self.began, self.go_on = threading.Semaphore(0), threading.Semaphore(0)
        self.is_closed, self.dies = threading.Event(), False
        self.picture, self.complaints = None, []

    def send(self, message):
        self.sent.append(message)

    def ask(self, message, is_closing):
        assert message[0] == "scene"
        scene = self.before = unpack_scene(unpack(pack(message[1])), self.before)
        self.sent.append(["scene", scene, message[2]])
        self.began.release()
        assert self.go_on.acquire(timeout=LONG_S)
        if self.dies:
            raise EOFError
        return self.picture, self.complaints

    def close(self):
        self.is_closed.set()

    @property
    def scenes(self):
        return [message[1] for message in self.sent if message[0] == "scene"]


@pytest.fixture
def processes(monkeypatch):
    made = []

    def make(settings, folder):
        made.append(Process(settings, folder))
        return made[-1]

    monkeypatch.setattr(view_module, "ArtistProcess", make)
    return made


@pytest.fixture
def worker():
    return Worker()


@pytest.fixture
def view(tmp_path, processes, worker):
    view = LiveView(LiveViewConfig(window="never", file="live.png"), tmp_path, lambda: worker)
    yield view
    for process in processes:
        process.go_on.release(1000)
    view.close()


def begin(view, processes):
    view.begin()
    for _ in range(int(LONG_S / 0.01)):
        if processes:
            return processes[-1]
        threading.Event().wait(0.01)
    raise TimeoutError("no process was started")


def test_what_comes_while_a_drawing_is_made_is_passed_over(view, processes, worker, make_sight, make_estimate):
    """No figure is drawn twice at a time, none waits in a queue, and whoever brings news never waits."""
    process = begin(view, processes)
    worker.gives(make_sight(1, uid="run", n=3))
    assert process.began.acquire(timeout=LONG_S)
    for n in range(3, 9):
        # The drawing is under way.
        worker.latest = make_estimate(n, uid="run")
    assert len(process.scenes) == 1
    process.go_on.release()
    assert process.began.acquire(timeout=LONG_S)
    assert [scene.estimate and scene.estimate.n_frames for scene in process.scenes] == [None, 8]


def test_a_sight_from_before_the_last_drawing_gives_way_to_a_newer_one(
    view, processes, worker, make_sight, monkeypatch
):
    """The second answer comes while the first is drawn, and a third is there at once when it has been."""
    monkeypatch.setattr(view_module, "FRESH_S", 0.0)
    monkeypatch.setattr(view_module, "wait", lambda asked, _: worker.asked[-1][1].set_result(make_sight(3)))
    process = begin(view, processes)
    worker.gives(make_sight(1))
    assert process.began.acquire(timeout=LONG_S)
    assert [scene.sight.number for scene in process.scenes] == [3]


def test_nothing_is_drawn_where_nothing_is_new(view, processes, worker, make_sight):
    process = begin(view, processes)
    process.go_on.release(1000)
    worker.gives(make_sight(1))
    worker.gives(make_sight(2))
    worker.gives(make_sight(3))
    view.close()
    assert process.is_closed.wait(LONG_S)
    drawn = [scene.sight.number for scene in process.scenes]
    assert drawn == sorted(set(drawn)) and drawn[-1] == 3


def test_the_image_of_another_run_is_not_shown(view, processes, worker, make_sight, make_estimate):
    process = begin(view, processes)
    process.go_on.release(1000)
    worker.latest = make_estimate(9, uid="before")
    worker.gives(make_sight(1, uid="now"))
    worker.gives(make_sight(2, uid="now"))
    view.close()
    assert process.scenes and all(scene.estimate is None for scene in process.scenes)


def test_the_last_image_stands_beside_no_frame_from_before_it(
    view, processes, worker, make_sight, make_estimate, until
):
    """The worker ends before the view does: then nothing newer than what was seen last comes."""
    process = begin(view, processes)
    worker.gives(make_sight(1, uid="run", n=3))
    assert process.began.acquire(timeout=LONG_S)
    worker.latest = make_estimate(8, uid="run")
    closing = threading.Thread(target=view.close)
    closing.start()
    until(lambda: view._closing)
    process.go_on.release(1000)
    closing.join(LONG_S)
    first, last = process.scenes
    assert (first.sight.received, first.sight.frame_seq_num, first.estimate) == (3, 3, None)
    assert (last.sight.received, last.sight.frame_seq_num, last.sight.fit, last.estimate.n_frames) == (8, 0, None, 8)
    assert last.sight.uid == "run"


def test_what_the_agent_decides_is_shown_until_the_run_ends(view, processes, worker, make_sight):
    process = begin(view, processes)
    process.go_on.release(1000)
    view.document("start", {"uid": "a"})
    view.document("descriptor", {"uid": "d", "name": "agent"})
    decision = DecisionRecord(2)
    decision.put(Proposal(np.array([[1e-6, 2e-6]]), np.ones(1), "ucb", "adapt"))
    data = {key: reading["value"] for key, reading in decision.read().items()}
    view.document("event", {"descriptor": "d", "data": data})
    worker.gives(make_sight(1))
    assert process.began.acquire(timeout=LONG_S)
    (scene,) = [scene for scene in process.scenes if scene.sight is not None]
    np.testing.assert_array_equal(scene.proposed_m, [[1e-6, 2e-6]])
    assert scene.reason == "adapt"
    # Of another stream, or of another form: neither raises.
    view.document("event", {"descriptor": "x", "data": {}})
    view.document("event", {"descriptor": "d", "data": {}})
    view.document("stop", {})
    assert len(view._scene().proposed_m) == 0


def test_a_further_decision_for_the_same_reason_is_drawn(view, processes, worker, make_sight):
    process = begin(view, processes)
    process.go_on.release(1000)
    view.document("descriptor", {"uid": "d", "name": "agent"})
    for number, y_m in enumerate((1e-6, 3e-6)):
        decision = DecisionRecord(2)
        decision.put(Proposal(np.array([[y_m, 2e-6]]), np.ones(1), "ucb", "adapt"))
        data = {key: reading["value"] for key, reading in decision.read().items()}
        view.document("event", {"descriptor": "d", "data": data})
        if number == 0:
            worker.gives(make_sight(1))
        assert process.began.acquire(timeout=LONG_S)
        np.testing.assert_array_equal(process.scenes[-1].proposed_m, [[y_m, 2e-6]])


def test_a_process_that_dies_is_told_and_begun_again_with_the_next_run(view, processes, worker, make_sight, caplog):
    process = begin(view, processes)
    process.dies = True
    process.go_on.release()
    worker.gives(make_sight(1))
    assert process.is_closed.wait(LONG_S)
    while view._thread is not None:
        threading.Event().wait(0.01)
    assert "the live view has ended" in caplog.text
    view.document("start", {"uid": "next"})
    assert view._thread is not None
    begin(view, processes[1:])


def test_a_worker_that_is_begun_anew_is_looked_at_from_its_first_sight(view, processes, worker, make_sight):
    process = begin(view, processes)
    process.go_on.release(1000)
    worker.gives(make_sight(57))
    while len(worker.asked) < 2:
        threading.Event().wait(0.01)
    assert worker.asked[1][0] == 57
    worker.asked[1][1].set_exception(WorkerError("killed"))
    while len(worker.asked) < 3:
        threading.Event().wait(0.01)
    assert worker.asked[2][0] == 0


def test_nothing_begins_where_nobody_wants_to_see(tmp_path, processes, worker):
    view = LiveView(LiveViewConfig(window="never"), tmp_path, lambda: worker)
    view.begin()
    view.document("start", {"uid": "a"})
    view.close()
    assert processes == [] and worker.asked == []


def test_without_a_display_there_is_no_window_and_that_is_said(tmp_path, processes, worker, caplog):
    view = LiveView(LiveViewConfig(window="auto"), tmp_path, lambda: worker)
    with caplog.at_level(logging.INFO, logger="bluesky_cdi"):
        view.begin()
    assert caplog.text.count("the live view has no window: MPLBACKEND is agg, which has none") == 1
    assert processes == []


@pytest.mark.parametrize(
    ("environment", "platform", "why"),
    [
        ({}, "linux", "no display"),
        ({"DISPLAY": ":0"}, "linux", ""),
        ({"WAYLAND_DISPLAY": "wayland-0"}, "linux", ""),
        ({"DISPLAY": ":0", "MPLBACKEND": "Agg"}, "linux", "MPLBACKEND is agg"),
        ({"DISPLAY": ":0", "MPLBACKEND": "QtAgg"}, "linux", ""),
        ({"MPLBACKEND": "module://matplotlib_inline.backend_inline"}, "darwin", "which has none"),
        ({}, "darwin", ""),
    ],
)
def test_where_a_window_can_be(environment, platform, why):
    said = why_no_window(environment, platform)
    assert (why in said) if why else (said == "")


def test_a_notebook_is_renewed_in_place(view, processes, worker, make_sight, monkeypatch):
    import IPython.display

    shown, renewed = [], threading.Event()
    handle = SimpleNamespace(update=lambda image: (shown.append(image.data), renewed.set()))
    monkeypatch.setattr(IPython.display, "display", lambda *_, **__: handle)
    view._ipython_display_()
    process = begin(view, processes)
    process.picture = b"\x89PNG\r\n\x1a\n"
    process.go_on.release(1000)
    worker.gives(make_sight(1))
    assert renewed.wait(LONG_S)
    assert shown[0] == process.picture
    assert process.sent[-1][2] is True


def test_a_result_is_shown_until_the_next_run(view, make_estimate):
    estimate = make_estimate()
    figure = view.show(estimate)
    assert figure.axes and view._scene().estimate is estimate
    view.document("start", {"uid": "next"})
    assert view._scene().estimate is None


def test_a_scene_is_sent_without_what_the_other_end_has(make_scene):
    scene = make_scene()
    fields = unpack(pack(pack_scene(scene, Scene())))
    there = unpack_scene(fields, Scene())
    np.testing.assert_array_equal(there.estimate.object, scene.estimate.object)
    np.testing.assert_array_equal(there.sight.counts, scene.sight.counts)
    assert there.estimate.origin_m == scene.estimate.origin_m and there.reason == "adapt"
    assert there.estimate.embedding.size == 0
    again = pack_scene(Scene(scene.sight, scene.estimate, reason="fill"), scene)
    assert again["sight"] == again["estimate"] == "same"
    assert unpack_scene(again, there).sight is there.sight


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"animation": "film.avi"}, "must end in .gif or .mp4; it is 'film.avi'"),
        ({"panels": ["phase", "phase"]}, "must name each panel once"),
        ({"panels": ["phases"]}, "Input should be 'phase'"),
        ({"most_fps": 6}, "less than or equal to 5"),
        ({"min_interval_s": 0.5}, "is no key of the configuration"),
    ],
)
def test_settings_that_can_not_be_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        load_config(overrides={"live_view": settings})


class NoWindow:
    """A window that is looked through: in whose thread things happen, and whether it is open."""

    def __init__(self, size_in):
        from matplotlib.figure import Figure

        self.figure, self.is_open, self.is_in_use = Figure(figsize=size_in), True, False
        self.shown = []

    def show(self):
        self.shown.append((threading.current_thread(), len(self.figure.axes)))

    def attend(self, seconds):
        threading.Event().wait(seconds)


@pytest.fixture
def artist(tmp_path):
    settings = LiveViewConfig(file="live.png", animation="scan{scan_id}.gif", panels=["phase"], scan_maps="never")
    return Artist(settings, tmp_path, NoWindow)


def test_a_drawing_goes_to_file_film_and_window(artist, tmp_path, make_scene):
    artist.open()
    # Of pictures that are the same a film has one.
    first, second = make_scene(1), make_scene(2, n=8)
    picture, complaints = artist.draw(pack_scene(first, Scene()), wants_picture=True)
    assert complaints == [] and (tmp_path / "live.png").read_bytes() == picture
    assert artist.draw(pack_scene(second, first)) == (None, [])
    assert artist.end() == []
    with Image.open(tmp_path / "scan7.gif") as film, Image.open(io.BytesIO(picture)) as still:
        assert film.n_frames == 2 and still.format == "PNG"
    assert [each.name for each in tmp_path.glob(".*")] == []
    assert [n for _, n in artist.window.shown] == [1, 1]


def test_a_window_is_left_alone_while_it_is_used_or_closed(artist, make_scene):
    artist.open()
    artist.draw(pack_scene(make_scene(1), Scene()))
    window = artist.window
    window.is_in_use = True
    artist.draw(pack_scene(make_scene(2), Scene()))
    window.is_in_use, window.is_open = False, False
    artist.draw(pack_scene(make_scene(3), Scene()))
    assert len(window.shown) == 1
    artist.open()
    artist.draw(pack_scene(make_scene(4), Scene()))
    assert artist.window is not window and len(artist.window.shown) == 1


def test_what_goes_wrong_is_told_once_and_the_rest_goes_on(tmp_path, make_scene):
    settings = LiveViewConfig(file="nowhere/live.png", animation="absent/film.gif", panels=["words"])
    artist = Artist(settings, tmp_path)
    artist.open()
    picture, complaints = artist.draw(pack_scene(make_scene(), Scene()), wants_picture=True)
    assert picture is not None
    assert len(complaints) == 3
    assert "needs a display and a toolkit" in complaints[0] and "there is no" in complaints[2]
    assert artist.draw(pack_scene(make_scene(2), Scene())) == (None, [])


def test_each_run_has_its_own_film(artist, tmp_path, make_scene, make_sight):
    artist.draw(pack_scene(make_scene(1), Scene()))
    artist.draw(pack_scene(Scene(make_sight(2, uid="other", scan_id=8)), Scene()))
    assert (tmp_path / "scan7.gif").is_file()
    artist.end()
    assert (tmp_path / "scan8.gif").is_file()


def test_a_long_film_keeps_pictures_from_beginning_to_end(tmp_path, monkeypatch):
    from bluesky_cdi.live_view import outputs

    monkeypatch.setattr(outputs, "GIF_PICTURES", 8)
    made = outputs.film(tmp_path / "film.gif", 5)
    for k in range(100):
        data = io.BytesIO()
        Image.new("RGB", (20, 10), (2 * k, 2 * k, 2 * k)).save(data, "PNG")
        made.add(None, data.getvalue())
    made.end()
    reds = []
    with Image.open(tmp_path / "film.gif") as film:
        assert 4 <= film.n_frames <= 8
        for k in range(film.n_frames):
            film.seek(k)
            reds.append(film.convert("RGB").getpixel((0, 0))[0])
    # To the nearest grey of the palette.
    assert reds[0] == 0 and reds[-1] >= 160 and np.ptp(np.diff(reds)) <= 8


def test_an_mp4_without_ffmpeg_says_what_to_do(tmp_path, monkeypatch):
    from matplotlib.animation import FFMpegWriter

    from bluesky_cdi.live_view import outputs

    monkeypatch.setattr(FFMpegWriter, "isAvailable", classmethod(lambda cls: False))
    with pytest.raises(ValueError, match=r"install it, or set live_view.animation to '.*film.gif'"):
        outputs.film(tmp_path / "film.mp4", 5)


def test_an_ffmpeg_that_fails_leaves_the_film_that_was_there_and_nothing_beside_it(tmp_path):
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from bluesky_cdi.live_view import outputs

    path, program = tmp_path / "films" / "film.mp4", tmp_path / "ffmpeg"
    program.write_text('#!/bin/sh\nfor file; do :; done\necho a part > "$file"\ncat > /dev/null\nexit 1\n')
    program.chmod(0o755)
    path.parent.mkdir()
    path.write_bytes(b"before")
    with rc_context({"animation.ffmpeg_path": str(program)}):
        made = outputs.film(path, 5)
        made.add(Figure(figsize=(1, 1)), b"")
        with pytest.raises(CalledProcessError):
            made.end()
    assert path.read_bytes() == b"before" and list(path.parent.iterdir()) == [path]


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
def test_an_mp4_is_a_film_of_its_pictures(tmp_path):
    from matplotlib.figure import Figure

    from bluesky_cdi.live_view import outputs

    made = outputs.film(tmp_path / "film.mp4", 5)
    for _ in range(3):
        made.add(Figure(figsize=(1, 1)), b"")
    assert not (tmp_path / "film.mp4").exists()
    made.end()
    assert list(tmp_path.iterdir()) == [tmp_path / "film.mp4"]
    assert (tmp_path / "film.mp4").read_bytes()[4:8] == b"ftyp"


def test_the_process_draws_in_one_thread_and_ends_when_the_session_is_gone(tmp_path, make_scene):
    """The race that was seen: a figure that two threads draw. Scenes come while the window is attended to."""
    ours, theirs = Pipe()
    made = []

    def make(settings, folder):
        made.append(Artist(settings, folder, NoWindow))
        return made[-1]

    thread = threading.Thread(target=serve, args=(theirs, make))
    thread.start()
    ours.send_bytes(pack(["setup", LiveViewConfig(panels=["words"]).model_dump(mode="json"), str(tmp_path)]))
    ours.send_bytes(pack(["window"]))
    scenes = [make_scene(k) for k in (1, 2, 3)]
    for scene in scenes:
        ours.send_bytes(pack(["scene", pack_scene(scene, Scene()), False]))
    for _ in scenes:
        assert unpack(ours.recv_bytes()) == ["drawn", None, []]
    ours.close()
    thread.join(LONG_S)
    assert not thread.is_alive()
    assert {who for who, _ in made[0].window.shown} == {thread}
    theirs.close()


def test_a_real_process_draws_and_ends(tmp_path, worker, make_sight, monkeypatch):
    """A whole one, from the first sight to the file."""
    view = LiveView(LiveViewConfig(window="never", file="live.png"), tmp_path, lambda: worker)
    view.begin()
    worker.gives(make_sight(1))
    for _ in range(int(LONG_S / 0.05)):
        if (tmp_path / "live.png").is_file():
            break
        threading.Event().wait(0.05)
    view.close()
    assert (tmp_path / "live.png").read_bytes().startswith(b"\x89PNG")
    assert view._thread is not None and not view._thread.is_alive()
