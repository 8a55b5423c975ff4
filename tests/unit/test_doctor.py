"""What the doctor finds: each thing right once and wrong once."""

import json
from pathlib import Path

import pytest

from bluesky_cdi.cli import main
from bluesky_cdi.config import Config, load_config
from bluesky_cdi.doctor import examine_profile, examine_sampling, installation, sampling
from bluesky_cdi.errors import ConfigError
from bluesky_cdi.profiles import write_profile

DEVICES = """
from pathlib import Path
from types import SimpleNamespace

class Device:
    def __init__(self, **keys):
        self.keys = keys

    def describe(self):
        return self.keys

    def read(self):
        raise RuntimeError("nothing is read")

    def set(self, value):
        raise RuntimeError("nothing is moved")

    trigger = set

class Dead(Device):
    def describe(self):
        raise TimeoutError("no answer of BL:Y")
"""


def of(findings):
    return {finding.name: finding for finding in findings}


@pytest.fixture
def profile(tmp_path):
    """Make a profile whose devices are what a text says, with a session that holds a configuration only."""

    def made(devices, **documents):
        folder = tmp_path / "profile"
        (folder / "startup").mkdir(parents=True)
        session = f"""
from bluesky_cdi.config import Config
closed = []
session = SimpleNamespace(
    config=Config.model_validate({{"documents": {documents!r}}}),
    close=Path({str(tmp_path / "closed")!r}).touch,
)
"""
        (folder / "startup" / "00.py").write_text(DEVICES + session)
        (folder / "startup" / "10.py").write_text(devices)
        return folder

    return made


GOOD = """
det = Device(image={"shape": [64, 64], "external": "STREAM:"}, total={"shape": []})
y = Device(y={"shape": [], "units": "MM"})
x = Device(x={"shape": [], "units": "micron"})
again = x
i0 = Device(i0={"shape": []})
"""


def test_good_devices(profile, tmp_path):
    found = of(examine_profile(profile(GOOD, monitor_key="i0")))
    assert {finding.level for finding in found.values()} == {"ok"}
    assert found["device det"].found == "image (64 x 64, in a file), total"
    assert found["axes"].found == "y in MM, x in micron" and "device again" not in found
    assert (tmp_path / "closed").exists()


@pytest.mark.parametrize(
    ("devices", "documents", "name", "level", "said"),
    [
        ("y = Dead()", {}, "device y", "fail", "no answer of BL:Y"),
        (GOOD.replace("micron", "deg"), {}, "axes", "fail", "y"),
        (GOOD, {"position_keys": ["y", "z"]}, "axes", "fail", "y, z"),
        (GOOD + 'eiger = Device(eiger={"shape": [1, 32, 32]})', {}, "frames", "warn", "image, eiger"),
        (GOOD, {"frame_key": "eiger"}, "frames", "fail", "eiger is no key"),
        (GOOD.replace("64, 64", "64"), {}, "frames", "fail", "no device describes frames"),
        (GOOD, {"monitor_key": "i1"}, "flux monitor", "fail", "i1 is no key"),
        ("1 / 0", {}, "profile", "fail", "startup/10.py"),
        ("del session", {}, "profile", "fail", "makes no `session`"),
    ],
)
def test_what_is_wrong_with_devices(profile, devices, documents, name, level, said):
    finding = of(examine_profile(profile(devices, **documents)))[name]
    assert finding.level == level and said in finding.found and finding.advice


def test_a_unit_that_the_configuration_states(profile):
    documents = {"position_keys": ["y", "x"], "position_unit": "um"}
    found = of(examine_profile(profile(GOOD.replace(', "units": "MM"', ""), **documents)))
    assert found["axes"].level == "ok" and found["axes"].found == "y in um, x in micron"


@pytest.mark.parametrize(
    ("change", "name", "level"),
    [
        ({}, "geometry", "ok"),
        ({}, "probe", "ok"),
        ({}, "step", "ok"),
        ({"geometry": {"distance_m": 2000.0}}, "geometry", "warn"),
        # 0.43 um of shadow and 0.09 of diffraction before; the field is 1.8 um.
        ({"probe": {"defocus_m": 0.6e-3}}, "probe", "warn"),
        ({"probe": {"defocus_m": 2e-3}}, "probe", "fail"),
        ({"scan": {"step_um": 0.25}}, "step", "warn"),
        ({"scan": {"step_um": 0.4}}, "step", "fail"),
    ],
)
def test_sampling(change, name, level):
    finding = of(examine_sampling(Config.model_validate(change)))[name]
    assert finding.level == level and bool(finding.advice) is (level != "ok")


def test_the_step_that_is_advised_is_accepted():
    advice = of(examine_sampling(Config.model_validate({"scan": {"step_um": 0.4}})))["step"].advice
    step_um = float(advice.split(" to ")[1].split()[0])
    assert of(examine_sampling(Config.model_validate({"scan": {"step_um": step_um}})))["step"].level == "ok"


def test_the_installation(tmp_path, monkeypatch):
    assert installation.versions().level == "ok"
    monkeypatch.setattr(installation, "PACKAGES", ("a-package-that-is-not-there",))
    assert installation.versions().advice == "pip install a-package-that-is-not-there"
    assert installation.weights(Config()).level == "ok"
    missing = Config.model_validate({"reconstructor": {"weights": str(tmp_path / "none.safetensors")}})
    assert installation.weights(missing).level == "fail"
    assert installation.disk(tmp_path / "new", 0.0).level in ("ok", "warn")
    assert installation.disk(tmp_path / "new", 1e12).level == "fail"
    (tmp_path / "file").write_text("")
    assert installation.disk(tmp_path / "file" / "below", 0.0).level == "fail"
    for name in (*installation.PROXIES, *map(str.upper, installation.PROXIES)):
        monkeypatch.delenv(name, raising=False)
    assert installation.proxies(Config()).found == "none in the environment"
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:1")
    assert installation.proxies(Config()).level == "ok"
    assert installation.proxies(Config.model_validate({"catalog": {"uri": "http://a"}})).level == "warn"


@pytest.mark.parametrize("uri", [None, "http://127.0.0.1:9"])
def test_whatever_keeps_the_server_from_starting_is_a_finding(tmp_path, monkeypatch, uri):
    config = Config.model_validate({"catalog": {"uri": uri, "directory": str(tmp_path)}})

    def fails(*_, **__):
        raise BlockingIOError("no more processes")

    monkeypatch.setattr("bluesky_cdi.catalog.keeper.subprocess.Popen", fails)
    monkeypatch.setattr("bluesky_cdi.catalog.connect.open_catalog", fails)
    monkeypatch.setattr("bluesky_cdi.catalog.open_catalog", fails)
    finding = installation.server(config)
    assert finding.level == "fail" and "BlockingIOError: no more processes" in finding.found and finding.advice


def test_the_configuration_of_the_environment_is_looked_at_as_a_session_would(tmp_path, monkeypatch, capsys):
    """It comes after the profile's own file, and the option -c in place of it."""
    for name in ("environment", "option"):
        (tmp_path / f"{name}.yaml").write_text(f"{name}: {{}}\n")
    monkeypatch.setenv("BLUESKY_CDI_CONFIG", str(tmp_path / "environment.yaml"))

    def looked_at(*options):
        assert main(["doctor", *options, "--json"]) == 1
        (finding,) = json.loads(capsys.readouterr().out)
        return finding["found"]

    assert "environment is no key" in looked_at() and "environment is no key" in looked_at("sim")
    said = looked_at("-c", str(tmp_path / "option.yaml"))
    assert "option is no key" in said and "environment" not in said


def test_a_bad_configuration_is_one_finding_and_an_exit_code(tmp_path, capsys):
    (tmp_path / "bad.yaml").write_text("scan: {stepp_um: 1}\n")
    assert main(["doctor", "-c", str(tmp_path / "bad.yaml"), "--json"]) == 1
    (finding,) = json.loads(capsys.readouterr().out)
    assert finding["level"] == "fail" and "stepp_um is no key" in finding["found"]


def test_a_test_frame_needs_a_profile(tmp_path, capsys):
    assert main(["doctor", "--frame", str(tmp_path / "a.png")]) == 1
    assert "--frame needs a profile" in capsys.readouterr().err


def test_a_new_profile_loads_and_nothing_is_replaced(tmp_path, capsys):
    folder = tmp_path / "my beamline"
    assert main(["new-profile", str(folder)]) == 0
    assert "EDIT" in capsys.readouterr().out
    config = load_config([folder / "config.yaml"])
    assert config.documents.monitor_key == "i0" and config.scan == load_config([sim() / "config.yaml"]).scan
    names = sorted(path.name for path in (folder / "startup").iterdir())
    assert names == sorted(path.name for path in (sim() / "startup").iterdir() if path.is_file())
    for path in (folder / "startup").glob("*.py"):
        compile(path.read_text(), str(path), "exec")
    assert "title='my beamline'" in (folder / "startup" / "30-prompt.py").read_text()
    with pytest.raises(ConfigError, match="nothing in it is replaced"):
        write_profile(folder, "")


def sim():
    import bluesky_cdi.profiles

    return Path(bluesky_cdi.profiles.__file__).parent / "sim"


def test_the_commented_devices_of_a_new_profile_are_python(tmp_path):
    """Each block compiles when its comment signs are taken away."""
    write_profile(tmp_path / "new", "")
    text = (tmp_path / "new" / "startup" / "10-devices.py").read_text()
    _, *blocks = text.split("# ---")
    assert len(blocks) == 2
    for block in blocks:
        lines = [line[2:] if line.startswith("# ") else line[1:] for line in block.splitlines()[1:]]
        compile("\n".join(lines), "block", "exec")


@pytest.mark.parametrize(
    ("field", "expected_nm"),
    # Far: binning leaves the pixel, which wavelength, distance and the side of what is kept set. Near: it enlarges it.
    [({"propagation": "far"}, 14.1), ({"propagation": "near", "focus_to_sample_m": 3.65e-3, "frame_px": 64}, 627.0)],
)
def test_the_pixel_is_that_of_binned_frames(field, expected_nm):
    config = load_config(overrides={"geometry": field, "detector": {"bin": 2}})
    assert f"{expected_nm:.3g} nm a pixel" in sampling.geometry(config).found
