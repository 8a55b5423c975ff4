"""The package list in pyproject.toml, the version, and what an import loads."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import bluesky_cdi

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
BESIDE = ("callbacks", "plans", "profiles", "sim_devices")
LIGHT = ("", ".plans", ".callbacks", ".protocols", ".config", ".sim_devices", ".errors", ".units")


def packages_on_disk():
    """Every folder that holds an `__init__.py`, as the name under which it is imported."""
    folders = [ROOT / "bluesky_cdi", *(ROOT / name for name in BESIDE)]
    found = {path.parent for folder in folders for path in folder.rglob("__init__.py")}
    names = {".".join(folder.relative_to(ROOT).parts) for folder in found}
    # rglob may or may not follow the links inside the package: they name what is counted anyway.
    return {name if name.split(".")[0] == "bluesky_cdi" else f"bluesky_cdi.{name}" for name in names}


def test_the_package_list_names_every_folder():
    listed = PROJECT["tool"]["setuptools"]["packages"]
    assert len(listed) == len(set(listed))
    assert set(listed) == packages_on_disk()


def test_folders_beside_the_package_are_mapped_into_it():
    mapped = PROJECT["tool"]["setuptools"]["package-dir"]
    assert mapped == {"bluesky_cdi": "bluesky_cdi", **{f"bluesky_cdi.{name}": name for name in BESIDE}}
    for name in BESIDE:
        link = ROOT / "bluesky_cdi" / name
        assert link.is_symlink() and link.resolve() == (ROOT / name).resolve()
        assert not link.readlink().is_absolute()


def test_data_files_of_the_package_exist():
    for package, patterns in PROJECT["tool"]["setuptools"]["package-data"].items():
        folder = ROOT / "bluesky_cdi" / Path(*package.split(".")[1:])
        for pattern in patterns:
            assert any(folder.glob(pattern)), f"{package}: {pattern}"


def test_the_version_is_a_version():
    assert isinstance(bluesky_cdi.__version__, str)
    assert re.fullmatch(r"\d+\.\d+\.\d+([.a-z0-9]+)?", bluesky_cdi.__version__)
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "bluesky_cdi.__version__"}


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


def test_plans_callbacks_and_devices_load_no_network_library():
    modules = ", ".join(f"bluesky_cdi{name}" for name in LIGHT)
    heavy = "{'torch', 'botorch', 'gpytorch'} & set(sys.modules)"
    done = run(f"import sys\nimport {modules}\nprint(sorted({heavy}))")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_import_configures_no_logging():
    done = run("import bluesky_cdi, bluesky_cdi.config, logging; print(logging.getLogger('bluesky_cdi').handlers)")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", PROJECT["tool"]["setuptools"]["packages"])
def test_every_package_says_what_it_is(name):
    parts = name.split(".")
    folder = ROOT / parts[1] if len(parts) > 1 and parts[1] in BESIDE else ROOT.joinpath(*parts)
    assert (folder / "__init__.py").read_text(encoding="utf-8").startswith('"""')


@pytest.fixture
def site():
    folder = os.environ.get("BLUESKY_CDI_WHEEL")
    if folder is None:
        pytest.skip("only where the tests run against a wheel: make wheel")
    return Path(folder).resolve()


def test_the_installed_wheel_is_what_is_tested(site):
    assert Path(bluesky_cdi.__file__).resolve().is_relative_to(site)


def contents(folder):
    """Every file of the package below a folder, links not followed, and what is in it; IPython keeps others there."""
    paths = [Path(here, name) for here, _, names in os.walk(folder) for name in names]
    kinds = {".py", ".yaml", ".json", ".safetensors", ".typed"}
    return {path.relative_to(folder): path.read_bytes() for path in paths if path.suffix in kinds}


def test_the_wheel_holds_every_file_as_it_is_here(site):
    expected = contents(ROOT / "bluesky_cdi")
    for name in BESIDE:
        expected |= {Path(name) / path: content for path, content in contents(ROOT / name).items()}
    installed = contents(site / "bluesky_cdi")
    assert sorted(installed) == sorted(expected)
    assert [path for path in expected if installed[path] != expected[path]] == []
