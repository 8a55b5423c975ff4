"""What is said of a factory that can't be had."""

import re
import zlib

import pytest

from bluesky_cdi.errors import ConfigError
from bluesky_cdi.remote.setup import LIVE, factory_of, live_setup


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module of a package that can be imported."""
    (tmp_path / "a_beamline").mkdir()
    monkeypatch.syspath_prepend(tmp_path)

    def write(name, text):
        (tmp_path / "a_beamline" / f"{name}.py").write_text(text)

    return write


def test_a_factory_is_found():
    assert factory_of(LIVE) is live_setup


@pytest.mark.parametrize("name", ["", "a_beamline", ":f", "a_beamline:", "..parts:f", "a-b:f", "a_beamline:A.f"])
def test_a_name_that_is_none(name):
    with pytest.raises(ConfigError, match=f"must be named module:function; got '{re.escape(name)}'"):
        factory_of(name)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import numpyy", "ModuleNotFoundError: No module named 'numpyy'"),
        ("import a_beam", "ModuleNotFoundError: No module named 'a_beam'"),
        ("from numpy import no_such_thing", "ImportError: cannot import name 'no_such_thing' from 'numpy'"),
        ("None.x", "AttributeError: 'NoneType' object has no attribute 'x'"),
        ("int('a')", "ValueError: invalid literal for int"),
        ("raise RuntimeError('no licence')", "RuntimeError: no licence"),
        ("def f(:", "SyntaxError: invalid syntax"),
    ],
)
def test_what_a_module_fails_of(module, text, said):
    # A name of its own: what was imported stays so.
    name = f"fails_{zlib.crc32(text.encode())}"
    module(name, text)
    with pytest.raises(ConfigError, match=re.escape(f"fails when it is imported: {said}")) as caught:
        factory_of(f"a_beamline.{name}:f")
    assert type(caught.value.__cause__).__name__ == said.partition(":")[0]


@pytest.mark.parametrize("name", ["a_beamlin", "a_beamline.no_parts", "no_beamline.parts", "json.decoder.parts"])
def test_a_module_that_is_not_there(module, name):
    with pytest.raises(
        ConfigError, match=r"must be one that Python finds \(ModuleNotFoundError: No module .*PYTHONPATH"
    ):
        factory_of(f"{name}:f")


def test_a_module_without_the_function(module):
    module("parts", "setup = 7")
    with pytest.raises(ConfigError, match=r"must be a function of its module; a_beamline\.parts has none of that name"):
        factory_of("a_beamline.parts:make")
    with pytest.raises(ConfigError, match=r"a_beamline\.parts has 7 of that name"):
        factory_of("a_beamline.parts:setup")
