"""Damaged files: a reader gives a scan or says what is wrong, whatever bytes, keys or values it meets.

Files with changed bytes are read in a child process: the HDF5 library itself may end the process
or loop for ever on such input, and that must be seen, not suffered.
"""

import json
import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bluesky_cdi import io
from bluesky_cdi.errors import BlueskyCDIError, FrameError, GeometryError, ScanFileError
from bluesky_cdi.io import (
    Scan,
    SingleShotImage,
    read_reference,
    write_cxi_result,
    write_product,
    write_scan,
    write_single_shot,
)
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.protocols import Estimate

GEOMETRY = Geometry(8000.0, 2.0, 172e-6, 16)
DETECTOR = "entry_1/instrument_1/detector_1"
TRANSLATION = "entry_1/sample_1/geometry_1/translation"
# A reader for each file; the rest are scans.
READERS = {
    "product.h5": "read_product",
    "result.cxi": "read_cxi_result",
    "single.cxi": "read_single_shot",
    "stack.npz": "read_frames",
    "stack.cxi": "read_frames",
}
DAMAGED = ("a.cxi", "a.npz", "p.npz", "d.h5", "d-product.h5", *READERS)
PAIRS = dict.fromkeys(("d.h5", "d-product.h5"), ("d.h5", "d-product.h5"))
SCANS = ("a.cxi", "a.npz", "p.npz", "d.h5")
# Where each form has its frames and positions: in which file, under which key.
FRAMES = {
    "a.cxi": ("a.cxi", f"{DETECTOR}/data"),
    "a.npz": ("a.npz", "frames"),
    "p.npz": ("p.npz", "diffraction"),
    "d.h5": ("d.h5", "patterns"),
}
POSITIONS = {
    "a.cxi": ("a.cxi", (TRANSLATION,)),
    "a.npz": ("a.npz", ("positions_px", "positions_m")),
    "p.npz": ("p.npz", ("xcoords", "ycoords")),
    "d.h5": ("d-product.h5", ("probe_position_x_m", "probe_position_y_m")),
    "product.h5": ("product.h5", ("probe_position_x_m", "probe_position_y_m")),
    "result.cxi": ("result.cxi", (TRANSLATION,)),
}


def good_scan() -> Scan:
    rng = np.random.default_rng(0)
    counts = rng.poisson(5.0, (6, 16, 16)).astype(np.float32)
    source, valid = {"propagation": "far field"}, np.ones((16, 16), bool)
    scan = Scan(counts, rng.uniform(-1e-6, 1e-6, (6, 2)), GEOMETRY, mask=valid, name="made", source=source)
    values = rng.normal(size=(1, 16, 16)) + 1j * rng.normal(size=(1, 16, 16))
    return replace(scan, probe=(values * np.sqrt(scan.mean_photons / (abs(values) ** 2).sum())).astype(np.complex64))


def good_image() -> SingleShotImage:
    inside, share = np.eye(16, dtype=bool), np.full(9, 0.5)
    return SingleShotImage(
        (0,), inside.astype(np.complex64), inside, np.full(3, 0.1), 0.05, ("converged", "stagnated", "converged"), 0,
        share, 0.01, np.ones((5, 3)), 4, 1e-8, {"file": "made"},
    )  # fmt: skip


def good_estimate() -> Estimate:
    scan, blank, n = good_scan(), np.ones((40, 40), np.float32), np.ones(6, np.float32)
    return Estimate(
        6, np.ones((40, 40), np.complex64), (-3e-6, -3e-6), GEOMETRY.pixel_m, scan.probe, blank, blank, blank,
        np.arange(1, 7), scan.positions_m, np.zeros((6, 2)), n, n, n,
    )  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> dict[str, bytes]:
    """Bytes of a whole file of each form."""

    class Contents(dict):
        def __repr__(self) -> str:  # hypothesis prints what a failing test was given
            return f"files {', '.join(self)}"

    folder = tmp_path_factory.mktemp("good")
    for name, form in zip(SCANS, ("cxi", "canonical", "ptychopinn", "ptychodus"), strict=True):
        write_scan(folder / name, good_scan(), form)
    write_product(folder / "product.h5", good_estimate(), GEOMETRY)
    write_cxi_result(folder / "result.cxi", good_estimate(), GEOMETRY)
    write_single_shot(folder / "single.cxi", [good_image()], GEOMETRY)
    write_scan(folder / "stack.cxi", good_scan())
    write_scan(folder / "stack.npz", good_scan())
    return Contents({path.name: path.read_bytes() for path in folder.iterdir()})


@pytest.fixture(scope="module")
def folder(tmp_path_factory, good) -> Path:
    """All of them; a test puts its damaged file in, and the whole one back."""
    folder = tmp_path_factory.mktemp("files")
    for name, content in good.items():
        (folder / name).write_bytes(content)
    return folder


def read(path: Path):
    """Read a file by its name's reader; a product that belongs to patterns by that of the patterns."""
    reader = getattr(io, READERS.get(path.name, "read_scan"))
    return reader(path.with_name("d.h5") if path.name == "d-product.h5" else path)


CHILD = f"""
import json, logging, sys, warnings
from pathlib import Path
logging.disable()
warnings.simplefilter("error")
import bluesky_cdi.io as io
from bluesky_cdi.errors import BlueskyCDIError
for line in sys.stdin:
    path = Path(line.strip())
    reader = getattr(io, {READERS}.get(path.name, "read_scan"))
    try:
        reader(path.with_name("d.h5") if path.name == "d-product.h5" else path)
        verdict = ["read", ""]
    except BlueskyCDIError as err:
        verdict = ["refused", str(err)]
    except BaseException as err:
        verdict = ["escaped", repr(err)]
    print(json.dumps(verdict), flush=True)
"""


class Child:
    """Reads files in another process; a death or two minutes of silence are a verdict."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None

    def verdict(self, path: Path) -> tuple[str, str]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        alarm = threading.Timer(120, self._process.kill)
        alarm.start()
        self._process.stdin.write(f"{path}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        alarm.cancel()
        return tuple(json.loads(answer)) if answer else ("died", f"return code {self._process.wait()}")

    def close(self) -> None:
        if self._process is not None:
            self._process.stdin.close()
            self._process.stdout.close()
            self._process.wait()


@pytest.fixture(scope="module")
def child():
    child = Child()
    yield child
    child.close()


def is_said(message: str, path: Path, keys: tuple[str, ...] = ()) -> bool:
    """Whether a message names the file, or the other of its pair, and what is the matter with it.

    That a file can't be read is said with the reason. Where it can be read, and what it holds under one of `keys` is
    wrong, the message must name such a key, and not say that the file can't be read.
    """
    files = [str(path.with_name(name)) for name in PAIRS.get(path.name, (path.name,))]
    said = message
    for file in files:
        said = said.replace(file, "")
    if said == message:
        return False
    if keys:
        return "can't read" not in said and any(re.search(rf"\b{re.escape(key)}\b", said) for key in keys)
    if "can't read" in said:
        return re.search(r"can't read .*: \w+: .+", said) is not None
    return len(said.split()) > 4


def test_what_counts_as_said(tmp_path):
    path = tmp_path / "d.h5"
    assert is_said(f"{path} must hold the dataset 'patterns'; it holds nothing", path)
    assert is_said(f"{path.with_name('d-product.h5')}: `probe` must hold finite numbers", path, ("probe",))
    for message in ("frames must be finite", "d.h5: frames must be finite", f"{path}", f"can't read {path}"):
        assert not is_said(message, path)
    for message in (f"{path}: `probe` must be finite", f"can't read `patterns` of {path} as numbers: OSError: no"):
        assert not is_said(message, path, ("patterns",))


@pytest.mark.parametrize("name", DAMAGED)
def test_whole_files_are_read(folder, name):
    read(folder / name)


@pytest.mark.parametrize("name", DAMAGED)
@given(share=st.floats(0, 1, exclude_max=True))
@settings(max_examples=settings().max_examples // 4)
def test_cut_short(folder, good, child, name, share):
    (folder / name).write_bytes(good[name][: int(share * len(good[name]))])
    kind, message = child.verdict(folder / name)
    (folder / name).write_bytes(good[name])
    assert kind == "refused" and is_said(message, folder / name), (kind, message)


@pytest.mark.parametrize("name", DAMAGED)
@given(flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=8))
@settings(max_examples=settings().max_examples * 6 // 10)
def test_changed_bytes(folder, good, child, name, flips):
    content = bytearray(good[name])
    for place, bits in flips:
        content[int(place * len(content))] ^= bits
    (folder / name).write_bytes(content)
    kind, message = child.verdict(folder / name)
    (folder / name).write_bytes(good[name])
    assert kind == "read" or (kind == "refused" and is_said(message, folder / name)), (kind, message)


def changed(path: Path, key: str, change) -> None:
    """Replace a dataset by ``change(values)``; by nothing where that is None."""
    if path.suffix == ".npz":
        with np.load(path) as file:
            values = dict(file)
        values[key] = change(values[key])
        np.savez(path, **{k: v for k, v in values.items() if v is not None})
        return
    with h5py.File(path, "a") as file:
        new, attributes = change(file[key][()]), dict(file[key].attrs)
        del file[key]
        if new is not None:
            file[key] = new
            file[key].attrs.update(attributes)


@pytest.fixture
def restored(folder, good):
    yield folder
    for name, content in good.items():
        (folder / name).write_bytes(content)


NEEDED = [
    ("a.npz", "frames", "must hold `frames`"),
    ("p.npz", "diffraction", "`diffraction`"), ("p.npz", "xcoords", "`xcoords`"), ("p.npz", "ycoords", "`ycoords"),
    ("a.cxi", f"{DETECTOR}/data", "data_1/data"), ("a.cxi", f"{DETECTOR}/distance", "distance"),
    ("a.cxi", f"{DETECTOR}/x_pixel_size", "x_pixel_size"), ("a.cxi", f"{DETECTOR}/y_pixel_size", "y_pixel_size"),
    ("d.h5", "patterns", "`patterns`"), ("d.h5", "indexes", "indexes"), ("d.h5", "bad_pixels", "bad_pixels"),
    *[
        (name, key, key)
        for name in ("d-product.h5", "product.h5")
        for key in ("probe", "object", "probe_position_indexes", "probe_position_x_m", "probe_position_y_m")
    ],
    ("result.cxi", "entry_1/image_1/data", "image_1/data"), ("result.cxi", "entry_1/image_2/data", "image_2"),
    ("result.cxi", TRANSLATION, "translation"), ("result.cxi", "entry_1/image_1/corner_positions", "corner_positions"),
    ("result.cxi", "entry_1/title", "title"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "key", "match"), NEEDED)
def test_missing_key(restored, name, key, match):
    changed(restored / name, key, lambda _: None)
    with pytest.raises(ScanFileError, match=match):
        read(restored / name)


def test_missing_energy_and_translation(restored):
    with h5py.File(restored / "a.cxi", "a") as file:
        del file["entry_1/instrument_1/beam_1"], file["entry_1/instrument_1/source_1"]
    with pytest.raises(ScanFileError, match="incident_energy"):
        read(restored / "a.cxi")


@pytest.mark.parametrize("attribute", ["probe_energy_eV", "detector_object_distance_m"])
def test_missing_attribute(restored, attribute):
    with h5py.File(restored / "product.h5", "a") as file:
        for name in {attribute, "photon_energy_eV"} if "energy" in attribute else {attribute}:
            del file.attrs[name]
    with pytest.raises(ScanFileError, match=r"must state '(photon_energy_eV|detector_object_distance_m)'"):
        read(restored / "product.h5")


@pytest.mark.parametrize("name", SCANS)
@given(place=st.tuples(st.integers(0, 5), st.integers(0, 15), st.integers(0, 15)), data=st.data())
@settings(max_examples=settings().max_examples // 8)
def test_no_counts(folder, good, name, place, data):
    value = data.draw(st.sampled_from([np.nan, np.inf, -np.inf, -1.0, -1e-3]))
    where, key = FRAMES[name]

    def spoil(frames):
        frames[place] = value
        return frames

    changed(folder / where, key, spoil)
    try:
        with pytest.raises(FrameError, match=r"not negative|must be finite") as refused:
            read(folder / name)
        assert is_said(str(refused.value), folder / name, (key.rsplit("/")[-1],))
    finally:
        (folder / where).write_bytes(good[where])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", POSITIONS)
def test_no_position(restored, name, value):
    where, keys = POSITIONS[name]

    def spoil(positions):
        positions.reshape(-1)[3] = value
        return positions

    changed(restored / where, keys[-1], spoil)
    with pytest.raises(GeometryError, match="finite"):
        read(restored / name)


@pytest.mark.parametrize("factor", [1e6, 1e9])
@pytest.mark.parametrize("name", POSITIONS)
def test_micrometres(restored, name, factor):
    where, keys = POSITIONS[name]
    for key in keys:
        changed(restored / where, key, lambda positions: positions * factor)
    with pytest.raises(GeometryError, match="look like micrometres"):
        read(restored / name)


@pytest.mark.parametrize(
    "dtype", [h5py.vlen_dtype(float), h5py.string_dtype(), [("r", "f8"), ("i", "f4")], h5py.opaque_dtype("<M8[s]")]
)
@pytest.mark.parametrize(
    ("name", "key"), [("a.cxi", f"{DETECTOR}/data"), ("product.h5", "object"), ("d.h5", "indexes")]
)
def test_types_that_damage_makes_deadly(restored, name, key, dtype):
    """Reading such a type, once its lengths are wrong, ends the process inside the HDF5 library."""
    with h5py.File(restored / name, "a") as file:
        shape = file[key].shape
        del file[key]
        file.create_dataset(key, shape, dtype)
    with pytest.raises(ScanFileError, match="must hold numbers; it holds"):
        read(restored / name)


def test_absurd_size(restored):
    with h5py.File(restored / "a.cxi", "a") as file:
        del file[TRANSLATION]
        file.create_dataset(TRANSLATION, (2**40, 3), np.float64, chunks=(2**10, 3))
    with pytest.raises(ScanFileError, match="no such array is expected"):
        read(restored / "a.cxi")


def test_many_dark_frames_without_positions(restored):
    """A shape that was damaged to more frames than there are positions costs no time."""
    with h5py.File(restored / "a.cxi", "a") as file:
        del file[f"{DETECTOR}/data"]
        file.create_dataset(f"{DETECTOR}/data", (2**40, 16, 16), np.uint16, chunks=(1, 16, 16))
    with pytest.raises(ScanFileError, match="frames need positions"):
        read(restored / "a.cxi")


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
@pytest.mark.parametrize("key", ["instrument_1/beam_1/incident_energy", f"{DETECTOR[8:]}/distance"])
def test_impossible_geometry(restored, key, value):
    changed(restored / "a.cxi", f"entry_1/{key}", lambda _: value)
    with pytest.raises(GeometryError, match=r"energy|distance"):
        read(restored / "a.cxi")


# File that is read, file that is changed, key.
KEYS = [
    *[(name, *FRAMES[name]) for name in SCANS],
    *[(name, POSITIONS[name][0], key) for name in POSITIONS for key in POSITIONS[name][1]],
    *[("a.cxi", "a.cxi", f"{DETECTOR}/{key}") for key in ("basis_vectors", "mask", "distance")],
    *[("a.cxi", "a.cxi", f"{DETECTOR}/{axis}_pixel_size") for axis in "xy"],
    *[("a.cxi", "a.cxi", f"entry_1/instrument_1/{key}") for key in ("source_1/illumination", "beam_1/incident_energy")],
    *[("a.npz", "a.npz", key) for key in ("probe_guess", "mask", "geometry", "source", "name")],
    *[("p.npz", "p.npz", key) for key in ("probeGuess", "mask", "pixel_m")],
    ("d.h5", "d.h5", "indexes"),
    ("d.h5", "d.h5", "bad_pixels"),
    ("d.h5", "d-product.h5", "probe"),
    *[("product.h5", "product.h5", key) for key in ("object", "probe", "probe_position_indexes")],
    *[("result.cxi", "result.cxi", f"entry_1/image_1/{key}") for key in ("data", "x_pixel_size", "corner_positions")],
    *[("result.cxi", "result.cxi", f"entry_1/{key}") for key in ("image_2/data", "title")],
    ("result.cxi", "result.cxi", "entry_1/sample_1/geometry_1/frame_indexes"),
    *[("single.cxi", "single.cxi", f"entry_1/image_1/{key}") for key in ("data", "mask", "process_1/note_1/data")],
    *[
        ("single.cxi", "single.cxi", f"entry_1/image_1/single_shot_1/{key}")
        for key in ("frames", "r_factor", "transfer", "history", "noise_r_factor", "best", "iterations", "status")
    ],
    *[("stack.npz", "stack.npz", key) for key in ("frames", "mask", "geometry", "probe_guess", "name")],
    *[("stack.cxi", "stack.cxi", f"{DETECTOR}/{key}") for key in ("data", "mask", "distance")],
]
# Keys that a message about one of them may name as well: they must fit one another.
TOGETHER = [
    {"xcoords", "ycoords"},
    {"probe_position_x_m", "probe_position_y_m", "probe_position_indexes"},
    {"x_pixel_size", "y_pixel_size"},
    {"frames", "mask"},
    {"status", "best", "r_factor", "history"},
    {"translation", "frame_indexes"},
]
SHAPES = {
    "flat": lambda v: v.reshape(-1),
    "one more axis": lambda v: v[..., np.newaxis],
    "one axis before": lambda v: v[np.newaxis],
    "empty": lambda v: v[:0],
    "transposed": lambda v: v.T,
    "three columns": lambda v: v[..., :3],
    "twice": lambda v: np.concatenate([v, v]),
    "sum": lambda v: v.sum(),
    "first": lambda v: v[:1],
}
TYPES = [np.uint8, np.int64, np.float16, np.float64, np.complex64, np.complex128, bool, "S3", "U3", ">i4", "<M8[s]"]


def check_other_shape_or_type(folder, good, key, shape, dtype) -> None:
    """Read a file whose values have another shape or type: the reader takes it, or names file and key."""
    name, where, place = key

    def spoil(values):
        try:
            values = np.atleast_1d(values) if shape is None else SHAPES[shape](np.atleast_1d(values))
            return values if dtype is None else np.asarray(values).astype(dtype)
        except (TypeError, ValueError):  # a text has no sum, and is no number
            return np.asarray(values)

    last = place.rsplit("/")[-1]
    keys = {last}.union(*(group for group in TOGETHER if last in group))
    try:
        try:
            changed(folder / where, place, spoil)
        except TypeError:  # HDF5 has no such type: the key stays deleted
            keys = set()
        read(folder / name)
    except BlueskyCDIError as err:
        assert is_said(str(err), folder / name, tuple(keys)), str(err)
    finally:
        for file in {name, where}:
            (folder / file).write_bytes(good[file])


CASTS = pytest.mark.filterwarnings(
    "ignore::numpy.exceptions.ComplexWarning", "ignore:invalid value:RuntimeWarning", "ignore:overflow:RuntimeWarning"
)


@pytest.mark.parametrize("key", KEYS, ids="-".join)
@CASTS
def test_each_other_shape_and_type(folder, good, key):
    for shape in SHAPES:
        check_other_shape_or_type(folder, good, key, shape, None)
    for dtype in TYPES:
        check_other_shape_or_type(folder, good, key, None, dtype)


@given(key=st.sampled_from(KEYS), shape=st.sampled_from(sorted(SHAPES)), dtype=st.sampled_from(TYPES))
@CASTS
def test_other_shape_and_type(folder, good, key, shape, dtype):
    check_other_shape_or_type(folder, good, key, shape, dtype)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"obj": None}, "obj"),
        ({"pos_in": None}, "pos_in"),
        ({"obj": np.full((40, 40), np.nan, np.complex64)}, "finite complex"),
        ({"obj": np.ones((40, 40), int)}, "finite complex"),
        ({"pos_in": np.full((6, 2), np.nan)}, "positions of another scan"),
        ({"pos_in": np.zeros((6, 2), complex)}, "real numbers"),
    ],
)
def test_reference(tmp_path, changes, match):
    scan = good_scan()
    values = {"obj": np.ones((40, 40), np.complex64), "pos_in": scan.positions_m / GEOMETRY.pixel_m}
    np.savez(tmp_path / "reference.npz", **values)
    assert read_reference(tmp_path / "reference.npz", scan).object.shape == (40, 40)
    np.savez(tmp_path / "reference.npz", **{k: v for k, v in (values | changes).items() if v is not None})
    with pytest.raises(ScanFileError, match=match):
        read_reference(tmp_path / "reference.npz", scan)
