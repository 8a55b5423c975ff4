"""A detector's raw frames give what the frames that were simulated give: from files, live, and reconstructed."""

import json
from dataclasses import replace

import event_model
import h5py
import numpy as np
import pytest

from bluesky_cdi.callbacks import FrameAssembler
from bluesky_cdi.callbacks._preprocessing import FIRST_FRAMES
from bluesky_cdi.catalog import ResultPublisher
from bluesky_cdi.config import Config, load_config
from bluesky_cdi.errors import GeometryError, ScanFileError
from bluesky_cdi.io import Preprocessing, Scan, read_product, read_scan, write_cxi_result, write_product, write_scan
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.reconstruction.batch import reconstruct
from bluesky_cdi.reconstruction.build import build_agent, build_reconstructor

SIDE, N, BIN = 32, 16, 2
# The detector: rows, columns, and the direct beam in it.
RAW, BEAM = (90, 84), (41, 30)
# Its first row that is kept, and two rows without pixels, each of which costs a binned one.
TOP, GAP = 8, slice(59, 61)
PIXEL_M = 86e-6
ENERGY_EV, DISTANCE_M = 8000.0, 2.0
GEOMETRY = Geometry(ENERGY_EV, DISTANCE_M, BIN * PIXEL_M, SIDE)


@pytest.fixture(scope="module")
def simulated() -> Scan:
    """Frames of a smooth object, zero frequency in the middle pixel, and where they were taken."""
    rng = np.random.default_rng(0)
    y, x = np.indices((SIDE, SIDE)) - SIDE // 2
    probe = np.exp(-(y**2 + x**2) / 32 + 0.03j * (y**2 + 1.3 * x**2))
    probe *= np.sqrt(1e5 / (abs(probe) ** 2).sum())
    at = np.stack(np.divmod(np.arange(N), 4), axis=1) * 4 + rng.integers(0, 2, (N, 2))
    f = np.hypot(*np.meshgrid(*(np.fft.fftfreq(at.max() + SIDE),) * 2))
    smooth = np.fft.ifft2(np.fft.fft2(rng.normal(size=f.shape)) * np.exp(-((f / 0.08) ** 2))).real
    sample = np.exp(0.5j * smooth / smooth.std())
    waves = np.array([probe * sample[r : r + SIDE, c : c + SIDE] for r, c in at])
    far = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(waves, axes=(1, 2))), axes=(1, 2)) / SIDE
    counts = rng.poisson(abs(far) ** 2).astype(np.uint32)
    return Scan(
        counts,
        at * GEOMETRY.pixel_m,
        GEOMETRY,
        probe[None].astype(np.complex64),
        name="raw",
        source={"propagation": "far field", "format": "canonical"},
    )


@pytest.fixture(scope="module")
def raw(simulated):
    """The same photons on a larger detector that lies on its side and upside down, with a module gap."""
    rng = np.random.default_rng(1)
    # The inverse of "transpose, then upside down", with each pixel's photons on BIN x BIN.
    turned = simulated.counts[:, ::-1, :].swapaxes(1, 2)
    fine = np.zeros((N, SIDE * BIN, SIDE * BIN), np.int32)
    for i, j in np.ndindex(BIN, BIN):
        share = turned if i == j == BIN - 1 else rng.binomial(turned, 0.3)
        fine[:, i::BIN, j::BIN] = share
        turned = turned - share
    frames = rng.poisson(0.5, (N, *RAW)).astype(np.int32)
    # Rows and columns whose binned middle is where the plan puts the beam.
    frames[:, TOP : TOP + SIDE * BIN, 0 : SIDE * BIN] = fine
    frames[:, GAP] = -1
    return frames


@pytest.fixture
def config():
    return load_config(
        overrides={
            "geometry": {
                "energy_ev": ENERGY_EV,
                "distance_m": DISTANCE_M,
                "detector_pixel_m": PIXEL_M,
                "frame_px": SIDE,
            },
            "detector": {
                "beam_centre_px": BEAM,
                "crop_px": SIDE * BIN,
                "bin": BIN,
                "transpose": True,
                "flip_rows": True,
                "mask_flagged": True,
            },
            "reconstructor": {"name": "lsqml", "background": 0.0, "threads": 1, "final_steps": 0},
            "probe": {"modes": 1},
        }
    )


@pytest.fixture
def path(tmp_path, simulated, raw):
    """A CXI file as an instrument leaves it, of frames that are not square."""
    path = tmp_path / "raw.cxi"
    with h5py.File(path, "w") as file:
        detector = file.create_group("entry_1/instrument_1/detector_1")
        detector["data"], detector["distance"] = raw, DISTANCE_M
        detector["x_pixel_size"] = detector["y_pixel_size"] = PIXEL_M
        file["entry_1/instrument_1/source_1/energy"] = ENERGY_EV * 1.602176634e-19
        file["entry_1/instrument_1/source_1/illumination"] = simulated.probe
        y, x = simulated.positions_m.T
        file["entry_1/sample_1/geometry_1/translation"] = np.column_stack([x, y, 0 * x])
    return path


def valid_pixels():
    """Rows of the raw detector are columns of the turned frame."""
    valid = np.ones((SIDE, SIDE), bool)
    valid[:, (GAP.start - TOP) // BIN : (GAP.stop - 1 - TOP) // BIN + 1] = False
    return valid


def write_in_tiles(path, frames, *, spoilt):
    """Write frames in chunks; damage those that hold no pixel of the square."""
    tile = (10, 12)
    with h5py.File(path, "w") as file:
        data = file.create_dataset("d", data=frames, chunks=(*[1] * (frames.ndim - 2), *tile), compression="gzip")
        for place in np.ndindex(*frames.shape[:-2], 9, 7) if spoilt else ():
            *leading, row, column = (*place[:-2], place[-2] * tile[0], place[-1] * tile[1])
            if row + tile[0] <= TOP or row >= TOP + SIDE * BIN or column >= SIDE * BIN:
                data.id.write_direct_chunk((*leading, row, column), b"no gzip")
    return path


def documents(raw, positions_m, geometry, path=None):
    """A run whose frames are in its events, or in a file."""
    bundle = event_model.compose_run(
        metadata={"motors": ["y", "x"], "scan_id": 3, "geometry": geometry, "window_m": window_of(positions_m)}
    )
    number = {"source": "test", "dtype": "number", "shape": [], "units": "m"}
    image = {"source": "test", "dtype": "array", "shape": list(raw.shape[1:])}
    keys = {"image": image if path is None else {**image, "external": "STREAM:"}, "y": number, "x": number}
    stream = bundle.compose_descriptor(
        name="primary", data_keys=keys, object_keys={"d": ["image"], "y": ["y"], "x": ["x"]}, configuration={}
    )
    yield "start", bundle.start_doc
    yield "descriptor", stream.descriptor_doc
    if path is not None:
        resource = bundle.compose_stream_resource(
            mimetype="application/x-hdf5", uri=path.as_uri(), data_key="image", parameters={"dataset": "d"}
        )
        at = {"start": 0, "stop": len(raw)}, {"start": 1, "stop": len(raw) + 1}
        yield "stream_resource", resource.stream_resource_doc
        yield (
            "stream_datum",
            resource.compose_stream_datum(indices=at[0], seq_nums=at[1], descriptor=stream.descriptor_doc),
        )
    for k, (frame, (y, x)) in enumerate(zip(raw, positions_m, strict=False), 1):
        data = {"y": y, "x": x} if path is not None else {"image": frame, "y": y, "x": x}
        yield "event", stream.compose_event(data=data, timestamps=dict.fromkeys(data, 0.0), seq_num=k)
    yield "stop", bundle.compose_stop()


def window_of(positions_m):
    return [positions_m.min(axis=0).tolist(), positions_m.max(axis=0).tolist()]


class Sink:
    def __init__(self):
        self.calls, self.info, self.frames, self.left_out, self.errors = [], None, [], [], []

    def start_run(self, info):
        self.calls.append("start_run")
        self.info = info

    def put(self, frame):
        self.calls.append("put")
        self.frames.append(frame)

    def leave_out(self, seq_num, error):
        self.left_out.append((seq_num, error))

    def end_run(self, exit_status, reason, notes):
        self.calls.append("end_run")

    def fail(self, error, start):
        self.calls.append("fail")
        self.errors.append(error)


def fed(raw, simulated, config, mask=None):
    sink = Sink()
    assembler = FrameAssembler(sink, preprocessing=Preprocessing.live(config), mask=mask)
    stated = Geometry(**config.geometry.model_dump()).as_metadata()
    for name, doc in documents(raw, simulated.positions_m, stated):
        assembler(name, doc)
    return sink


def test_a_raw_file_gives_the_simulated_frames(path, simulated, config):
    scan = read_scan(path, preprocessing=Preprocessing.recorded(config))
    valid = valid_pixels()
    np.testing.assert_array_equal(scan.mask, valid)
    np.testing.assert_array_equal(np.asarray(scan.counts)[:, valid], simulated.counts[:, valid])
    assert scan.geometry == GEOMETRY
    np.testing.assert_allclose(scan.positions_m, simulated.positions_m, rtol=1e-12)
    # What the file's probe is: of the size that comes out, so taken as it is.
    assert np.corrcoef(abs(scan.probe).ravel(), abs(simulated.probe).ravel())[0, 1] == pytest.approx(1, abs=1e-6)
    notes = scan.source["preprocessing"]
    assert (notes["bin"], notes["frame_px"], notes["flagged_pixels"]) == (BIN, SIDE, 2 * SIDE * BIN)
    assert scan.source["flagged_pixels"] == 2 * SIDE * BIN
    # Half a raw pixel is a quarter of a binned one.
    assert np.abs(notes["beam_offset_px"]).tolist() == [0.25, 0.25]


def test_live_and_recorded_frames_are_the_same(path, raw, simulated, config):
    scan = read_scan(path, preprocessing=Preprocessing.recorded(config))
    sink = fed(raw, simulated, config)
    np.testing.assert_array_equal([frame.counts for frame in sink.frames], scan.counts)
    assert {frame.counts.dtype for frame in sink.frames} == {np.dtype(np.uint32)} == {scan.counts.dtype}
    done = sink.info.preprocessed
    np.testing.assert_array_equal(done.mask, scan.mask)
    assert dict(done.notes) == scan.source["preprocessing"] and json.dumps(done.notes)
    assert sink.info.frame_shape == (SIDE, SIDE)
    assert Geometry.from_metadata(sink.info.metadata, sink.info.frame_shape) == GEOMETRY == scan.geometry
    assert sink.calls == ["start_run", *["put"] * N, "end_run"] and not sink.errors and not sink.left_out


@pytest.mark.parametrize("looks", [True, False])
@pytest.mark.parametrize("images", [1, 2])
def test_frames_in_files_are_those_in_documents_and_come_again(raw, simulated, config, tmp_path, looks, images):
    """Of the file nothing is read but the region: whatever lies in its other chunks, the frames are the same."""
    mask = np.ones(RAW, bool)
    mask[GAP] = False
    settings = config.detector.model_copy(update={"mask_flagged": looks})
    config = config.model_copy(update={"detector": settings})
    preprocessing, stated = Preprocessing.live(config), Geometry(**config.geometry.model_dump()).as_metadata()
    (inline, filed), frames = (Sink(), Sink()), raw if images == 1 else np.stack([raw, raw[::-1]], axis=1)
    for sink, where in ((inline, None), (filed, write_in_tiles(tmp_path / "raw.h5", frames, spoilt=not looks))):
        assembler = FrameAssembler(sink, preprocessing=preprocessing, mask=mask)
        for name, doc in documents(frames, simulated.positions_m, stated, where):
            assembler(name, doc)
        assert sink.calls == ["start_run", *["put"] * N, "end_run"] and not sink.left_out
    again = [filed.info.read_again(k + 1) for k in range(N)]
    for came in (filed.frames, again):
        np.testing.assert_array_equal([each.counts for each in came], [each.counts for each in inline.frames])
        assert {each.counts.dtype for each in came} == {each.counts.dtype for each in inline.frames}
    assert filed.info.preprocessed.notes == inline.info.preprocessed.notes


@pytest.mark.parametrize("n", [1, FIRST_FRAMES - 1, FIRST_FRAMES, FIRST_FRAMES + 1])
def test_frames_that_are_waited_for_are_handed_on_in_order(raw, simulated, config, n):
    sink = fed(raw[:n], simulated, config)
    assert [frame.seq_num for frame in sink.frames] == list(range(1, n + 1))
    assert sink.calls == ["start_run", *["put"] * n, "end_run"]


def test_a_beam_that_is_looked_for_live_is_that_of_the_file(path, raw, simulated, config):
    settings = config.detector.model_copy(update={"beam_centre_px": "find"})
    config = config.model_copy(update={"detector": settings})
    live = fed(raw, simulated, config).info.preprocessed.notes
    recorded = read_scan(path, preprocessing=Preprocessing.recorded(config)).source["preprocessing"]
    # The pixel whose binned middle the simulation has as zero frequency lies half a raw pixel on.
    assert recorded["beam_centre_px"] == pytest.approx([40.5, 30.5], abs=1.0)
    assert live["beam_centre_px"] == pytest.approx(recorded["beam_centre_px"], abs=1.0)
    assert live["beam_centre"] == recorded["beam_centre"] == "found"


def test_a_known_mask_of_the_detector_goes_the_same_way(raw, simulated, config):
    mask = np.ones(RAW, bool)
    mask[GAP] = False
    settings = config.detector.model_copy(update={"mask_flagged": False})
    sink = fed(raw, simulated, config.model_copy(update={"detector": settings}), mask)
    np.testing.assert_array_equal(sink.info.preprocessed.mask, valid_pixels())
    assert len(sink.frames) == N and sink.info.preprocessed.notes["flagged_pixels"] == 0


def test_flags_that_nobody_masks_cost_the_frames_not_the_run(raw, simulated, config):
    settings = config.detector.model_copy(update={"mask_flagged": False})
    sink = fed(raw, simulated, config.model_copy(update={"detector": settings}))
    assert [number for number, _ in sink.left_out] == list(range(1, N + 1)) and not sink.errors
    assert "detector.mask_flagged masks those that hold a flag in every frame" in str(sink.left_out[0][1])


@pytest.mark.parametrize(
    ("detector", "message"),
    [
        ({"crop_px": 48}, r"geometry.frame_px must be .* it is 32, and frames of 90 x 84 pixels become 24 x 24"),
        ({"crop_px": 640}, "does not. Crop to fewer pixels"),
        ({"dark": "absent.npy"}, "there is no file absent.npy"),
    ],
)
@pytest.mark.parametrize("waits", [True, False])
def test_what_cannot_be_planned_fails_the_run_and_says_why(raw, simulated, config, detector, message, waits):
    settings = config.detector.model_copy(update={**detector, "mask_flagged": waits})
    sink = fed(raw, simulated, config.model_copy(update={"detector": settings}))
    with pytest.raises((GeometryError, ScanFileError), match=message):
        raise sink.errors[0]
    assert sink.calls == ["fail"] and not sink.frames


def test_a_run_without_frames_in_which_flags_are_looked_for_ends(raw, simulated, config):
    sink = fed(raw[:0], simulated, config)
    assert sink.calls == ["start_run", "end_run"]
    settings = config.detector.model_copy(update={"beam_centre_px": "find"})
    sink = fed(raw[:0], simulated, config.model_copy(update={"detector": settings}))
    assert sink.calls == ["fail"] and "no frame came" in str(sink.errors[0])


def test_without_a_section_the_frames_of_documents_are_handed_on_as_they_are(raw, simulated):
    square = raw[:4, TOP : TOP + 64, :64].clip(0)
    sink = Sink()
    assembler = FrameAssembler(sink, preprocessing=Preprocessing.live(Config()))
    for name, doc in documents(square, simulated.positions_m, GEOMETRY.as_metadata()):
        assembler(name, doc)
    assert all(np.shares_memory(frame.counts, square) for frame in sink.frames)
    assert sink.info.preprocessed is None and sink.info.metadata["geometry"] == GEOMETRY.as_metadata()


def test_a_raw_file_is_reconstructed_as_the_simulated_frames_are(path, simulated, config, tmp_path):
    scan = read_scan(path, preprocessing=Preprocessing.recorded(config))
    ideal = replace(simulated, mask=valid_pixels(), probe=scan.probe, positions_m=scan.positions_m)
    wanted = reconstruct(ideal, config.model_copy(update={"detector": Config().detector}), 3)
    found = reconstruct(scan, config, 3)
    np.testing.assert_array_equal(found.object, wanted.object)
    assert "preprocessing" not in wanted.source
    assert found.source["preprocessing"] == scan.source["preprocessing"]
    write_cxi_result(tmp_path / "o.cxi", found, scan.geometry, "raw")
    write_product(tmp_path / "o.h5", found, scan.geometry, "raw")
    with h5py.File(tmp_path / "o.h5") as product, h5py.File(tmp_path / "o.cxi") as cxi:
        said = json.loads(cxi["entry_1/process_1/note_1/data"][()])
        assert said["preprocessing"] == json.loads(
            product.attrs["comments"].removeprefix("preprocessing: ").partition("; verdict: ")[0]
        )
        assert said["preprocessing"]["beam_centre_px"] == [41, 30]
    assert read_product(tmp_path / "o.h5").geometry.pixel_m == pytest.approx(GEOMETRY.pixel_m)


def test_a_live_run_is_reconstructed_as_the_file_is(path, raw, simulated, config, tmp_path):
    sink = fed(raw, simulated, config)
    probe = read_scan(path, preprocessing=Preprocessing.recorded(config)).probe
    reconstructor = build_reconstructor(sink.info, config, probe=probe)
    reconstructor.add(sink.frames)
    estimate = reconstructor.step(60.0)
    assert estimate.pixel_m == pytest.approx(GEOMETRY.pixel_m)
    assert estimate.source["preprocessing"] == dict(sink.info.preprocessed.notes)
    emitted = []
    publisher = ResultPublisher(sink.info, tmp_path, lambda name, doc: emitted.append((name, doc)))
    publisher.close(estimate)
    start = emitted[0][1]
    assert start["source"]["preprocessing"]["bin"] == BIN and start["frame_shape"] == [SIDE, SIDE]
    assert start["geometry"]["detector_pixel_m"] == pytest.approx(BIN * PIXEL_M)


def test_the_agent_knows_the_binned_pixel(config, monkeypatch):
    from bluesky_cdi.protocols import ScanArea

    seen = []
    monkeypatch.setattr("bluesky_cdi.agent.make_agent", lambda *_, probe_width_m, **__: seen.append(probe_width_m))
    area = ScanArea((-5e-7, -4e-7), (5e-7, 4e-7), 1e-7, 20)
    build_agent(area, config)
    plain = {"geometry": {**config.geometry.model_dump(), "detector_pixel_m": BIN * PIXEL_M}, "probe": {"modes": 1}}
    build_agent(area, Config.model_validate(plain))
    assert seen[0] == pytest.approx(seen[1])


def test_a_saturation_alone_is_looked_at_in_the_reconstruction(simulated):
    config = Config.model_validate(
        {
            "detector": {"saturation": float(simulated.counts.max() + 1)},
            "reconstructor": {"name": "rpie", "background": 0.0, "threads": 1},
            "probe": {"modes": 1},
        }
    )
    plain = config.model_copy(update={"detector": Config().detector})
    expected = reconstruct(simulated, plain, 2).object
    np.testing.assert_array_equal(reconstruct(simulated, config, 2).object, expected)
    low = config.detector.model_copy(update={"saturation": float(np.quantile(simulated.counts, 0.99))})
    assert not np.array_equal(reconstruct(simulated, config.model_copy(update={"detector": low}), 2).object, expected)


def test_a_scan_that_was_not_preprocessed_is_refused(simulated, config):
    with pytest.raises(GeometryError, match=r"read_scan\(path, preprocessing=Preprocessing\.recorded\(config\)\)"):
        reconstruct(simulated, config, 1)


@pytest.mark.parametrize("name", ["a.cxi", "a.npz"])
def test_converted_frames_keep_their_notes_and_are_not_preprocessed_again(path, config, tmp_path, name):
    detector = config.detector.model_copy(update={"saturation": 500.0})
    config = config.model_copy(update={"detector": detector})
    scan = read_scan(path, preprocessing=Preprocessing.recorded(config))
    write_scan(tmp_path / name, scan)
    back = read_scan(tmp_path / name)
    assert back.source["preprocessing"] == scan.source["preprocessing"]
    assert back.saturation(7.0) == scan.saturation(None) >= 500 * BIN**2
    np.testing.assert_array_equal(back.counts, scan.counts)
    with pytest.raises(ScanFileError, match="were preprocessed when the file was written"):
        read_scan(tmp_path / name, preprocessing=Preprocessing.recorded(config))


def test_the_probe_follows_a_crop_and_a_binning(simulated, tmp_path):
    write_scan(tmp_path / "a.npz", simulated)

    def probe(**settings):
        wanted = Preprocessing.recorded(Config.model_validate({"detector": settings}))
        found = read_scan(tmp_path / "a.npz", preprocessing=wanted)
        return found.probe[0], found.geometry.pixel_m

    old, new = simulated.probe[0], probe(crop_px=24)
    assert new[0].shape == (24, 24) and new[1] == pytest.approx(GEOMETRY.pixel_m * 32 / 24)
    # The same light on larger pixels: its width in metres stays.
    np.testing.assert_allclose(width_m(new[0], new[1]), width_m(old, GEOMETRY.pixel_m), rtol=0.02)
    binned = probe(bin=2)
    assert binned[0].shape == (16, 16) and binned[1] == pytest.approx(GEOMETRY.pixel_m)
    inner = old[8:24, 8:24]
    np.testing.assert_allclose(
        binned[0] / np.linalg.norm(binned[0]), inner / np.linalg.norm(inner), atol=1e-6 * abs(inner).max()
    )


def width_m(probe, pixel_m):
    power = abs(probe) ** 2 / (abs(probe) ** 2).sum()
    y, x = (np.indices(probe.shape) - len(probe) // 2) * pixel_m
    return np.sqrt([(power * y**2).sum(), (power * x**2).sum()])


def test_a_probe_of_other_frames_is_left_out(path, tmp_path, config, caplog):
    with h5py.File(path, "a") as file:
        del file["entry_1/instrument_1/source_1/illumination"]
        file["entry_1/instrument_1/source_1/illumination"] = np.ones((20, 20), complex)
    assert read_scan(path, preprocessing=Preprocessing.recorded(config)).probe is None
    assert "does not fit frames of 32 x 32 pixels" in caplog.text


def test_a_beam_is_not_looked_for_in_a_shadow(path, config):
    settings = config.detector.model_copy(update={"beam_centre_px": "find"})
    wanted = Preprocessing(settings)
    with pytest.raises(GeometryError, match="near-field frames are shadows"):
        read_scan(path, focus_to_sample_m=0.1, preprocessing=wanted)


def test_frames_of_a_near_field_are_cropped_and_binned(path, config):
    scan = read_scan(path, focus_to_sample_m=1.0, preprocessing=Preprocessing(config.detector))
    # Magnified three times.
    assert scan.geometry.pixel_m == pytest.approx(BIN * PIXEL_M / 3) and scan.geometry.frame_px == SIDE
