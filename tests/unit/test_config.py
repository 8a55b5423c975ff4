import re

import pytest
import yaml
from pydantic import ValidationError

from bluesky_cdi.config import Config, load_config
from bluesky_cdi.errors import ConfigError


@pytest.fixture
def write(tmp_path):
    def written(name, content):
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return path

    return written


def test_nothing_gives_the_defaults():
    assert load_config() == Config()


def test_an_empty_file_changes_nothing(write):
    assert load_config([write("empty.yaml", "# nothing yet\n")]) == Config()


def test_the_whole_configuration_survives_a_file(write):
    config = Config()
    assert load_config([write("all.yaml", yaml.safe_dump(config.model_dump(mode="json")))]) == config


def test_later_files_win_and_overrides_win_over_all(write):
    first = write("a.yaml", {"scan": {"budget": 100, "batch": 4, "step_um": 0.5}, "geometry": {"energy_ev": 6000}})
    second = write("b.yaml", {"scan": {"budget": 200, "step_um": 0.4}})
    config = load_config([first, str(second)], {"scan": {"step_um": 0.3}})
    assert (config.scan.batch, config.scan.budget, config.scan.step_um) == (4, 200, 0.3)
    assert config.geometry.energy_ev == 6000
    assert config.geometry.distance_m == Config().geometry.distance_m
    assert load_config([second, first]).scan.budget == 100


def test_the_home_folder_is_known(write, monkeypatch, tmp_path):
    write("mine.yaml", {"scan": {"budget": 77}})
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_config(["~/mine.yaml"]).scan.budget == 77


def test_numbers_in_exponent_notation_are_numbers(write):
    assert load_config([write("e.yaml", "geometry: {detector_pixel_m: 55e-6}")]).geometry.detector_pixel_m == 55e-6


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ({"geometri": {}}, "geometri is no key of the configuration; known here are geometry, detector, probe, scan"),
        (
            {"scan": {"stepp_um": 1}},
            r"scan\.stepp_um is no key of the configuration \(got 1\); known here are .*step_um",
        ),
        ({"reconstructor": {"name": "pinn", "epochs": 3}}, r"reconstructor\.epochs"),
        ({1: 2}, "1"),
    ],
)
def test_an_unknown_key_is_refused_by_name(write, content, where):
    path = write("odd.yaml", content)
    with pytest.raises(ConfigError, match=rf"(?s){re.escape(str(path))} is not valid.*{where}"):
        load_config([path])


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("geometry", "energy_ev", 0),
        ("geometry", "distance_m", -1),
        ("geometry", "energy_ev", float("nan")),
        ("geometry", "frame_px", 8),
        ("geometry", "frame_px", 65),
        ("geometry", "frame_px", 2048),
        ("geometry", "energy_ev", "bright"),
        ("geometry", "energy_ev", None),
        ("probe", "numerical_aperture", 0.2),
        ("probe", "central_stop", 1),
        ("probe", "modes", 0),
        ("probe", "modes", 9),
        ("scan", "step_um", 0),
        ("scan", "budget", 0),
        ("scan", "extent_um", [1.0]),
        ("scan", "batch", 257),
        ("agent", "name", "genetic"),
        ("agent", "alpha", 1.2),
        ("reconstructor", "name", "magic"),
        ("reconstructor", "background", -0.1),
        ("simulation", "sample", "moon"),
        ("simulation", "coherent_share", 0),
        ("simulation", "flux_fluctuation", 1),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_name(section, key, value):
    with pytest.raises(ConfigError, match=rf"(?s)the configuration is not valid.*{section}\.{key}.*\(got "):
        load_config(overrides={section: {key: value}})


def test_all_mistakes_are_told_at_once():
    with pytest.raises(ConfigError, match=r"(?s)scan\.budget.*scan\.stepp"):
        load_config(overrides={"scan": {"budget": 0, "stepp": 1}})


def test_a_batch_larger_than_the_budget_is_refused():
    with pytest.raises(ConfigError, match=r"scan\.batch \(16\) exceeds scan\.budget \(9\)"):
        load_config(overrides={"scan": {"budget": 9}})
    assert load_config(overrides={"scan": {"budget": 9, "batch": 9}}).scan.batch == 9


@pytest.mark.parametrize(("content", "kind"), [("- 1\n- 2\n", "list"), ("just words\n", "str"), ("7\n", "int")])
def test_a_file_that_is_no_mapping_is_refused(write, content, kind):
    path = write("list.yaml", content)
    with pytest.raises(ConfigError, match=rf"list\.yaml must hold a mapping of sections .* it holds a {kind}"):
        load_config([path])


@pytest.mark.parametrize("section", [None, 5, "fast", [1]])
def test_a_section_that_is_no_mapping_is_refused(section):
    with pytest.raises(ConfigError, match="scan: "):
        load_config(overrides={"scan": section})


@pytest.mark.parametrize("content", ["scan: [1, 2\n", "a: b: c\n", b"\xff\xfe\x00s", b"scan: \x00\n"])
def test_a_file_that_cannot_be_parsed_is_refused(write, content):
    path = write("broken.yaml", content)
    with pytest.raises(ConfigError, match=r"can't read the configuration file .*broken\.yaml"):
        load_config([path])


def test_an_absent_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "gone.yaml", tmp_path):
        with pytest.raises(ConfigError, match=f"can't read the configuration file {re.escape(str(path))}"):
            load_config([path])


def test_a_file_cannot_run_code(write):
    with pytest.raises(ConfigError, match="can't read"):
        load_config([write("evil.yaml", "scan: !!python/object/apply:os.getcwd []\n")])


def test_the_configuration_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Config().scan.budget = 3
    with pytest.raises(ValidationError, match="frozen"):
        Config().scan = None


def test_every_setting_is_described():
    def described(model, path):
        for name, field in model.model_fields.items():
            if hasattr(field.annotation, "model_fields"):
                described(field.annotation, f"{path}{name}.")
            else:
                assert field.description, f"{path}{name}"

    described(Config, "")


def test_a_key_of_an_earlier_version_is_refused_with_its_new_name():
    with pytest.raises(ConfigError, match=r"simulation\.beam_fluctuation is called simulation\.flux_fluctuation now"):
        load_config(overrides={"simulation": {"beam_fluctuation": 0.1}})


def test_aliases_are_refused_before_they_grow(write):
    laughs = "a: &a [x, x]\n" + "".join(
        f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    with pytest.raises(ConfigError, match=r"must have no aliases \(line 2: \*a\)"):
        load_config([write("laughs.yaml", laughs)])


@pytest.mark.parametrize("deep", ["[" * 100_000, "{a: " * 2000, "\n".join("  " * k + "a:" for k in range(200))])
def test_deep_files_are_refused_with_the_line(write, deep):
    with pytest.raises(ConfigError, match=r"must nest at most 16 levels; line \d+"):
        load_config([write("deep.yaml", deep)])


def test_large_files_are_refused_unread(write):
    with pytest.raises(ConfigError, match="must have at most 262144 bytes"):
        load_config(["/dev/zero"])
    with pytest.raises(ConfigError, match="must have at most 262144 bytes"):
        load_config([write("large.yaml", "#" * 300_000)])


def test_numbers_without_end_are_refused(write):
    with pytest.raises(ConfigError, match="can't read the configuration file"):
        load_config([write("digits.yaml", "scan: {budget: " + "9" * 10_000 + "}")])


def test_no_beam_is_looked_for_in_a_near_field():
    with pytest.raises(ConfigError, match="no direct beam can be found"):
        load_config(overrides={"geometry": {"propagation": "near"}, "detector": {"beam_centre_px": "find"}})


@pytest.mark.parametrize(
    ("key", "value", "unit"),
    [("energy_ev", 8.0, "8 eV"), ("distance_m", 2000.0, "2000 m"), ("detector_pixel_m", 172.0, "172 m")],
)
def test_another_unit_is_suspected(key, value, unit, caplog):
    load_config(overrides={"geometry": {"energy_ev": 12400.0, "distance_m": 5.0, "detector_pixel_m": 55e-6}})
    assert not caplog.records
    load_config(overrides={"geometry": {key: value}})
    (record,) = caplog.records
    assert f"geometry.{key} is {unit}, which few instruments have" in record.getMessage()
