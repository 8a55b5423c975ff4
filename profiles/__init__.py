"""A folder for each beamline: ``config.yaml`` and ``startup/*.py``.

IPython, the queue server and the command line read them.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from bluesky_cdi.errors import ConfigError


def profile_directory(name: str) -> Path:
    """Find a profile: one of this package by name, or any folder by path.

    Parameters
    ----------
    name : str
        Name of a profile of this package (``sim``), or path of a folder with ``startup``.

    Raises
    ------
    ConfigError
        If there is none.
    """
    here = Path(__file__).parent
    for folder in (Path(name).expanduser(), here / name):
        if (folder / "startup").is_dir():
            return folder.resolve()
    known = ", ".join(sorted(p.parent.name for p in here.glob("*/startup")))
    raise ConfigError(f"no profile {name!r}: give a folder with startup/, or one of {known}")


def write_profile(folder: Path, title: str) -> list[Path]:
    """Write a profile for a beamline of one's own: with simulated devices, until they are replaced.

    Parameters
    ----------
    folder : Path
        Where; it must not exist.
    title : str
        What greets at the prompt.

    Returns
    -------
    list of Path
        The files that it consists of.

    Raises
    ------
    ConfigError
        If the folder exists, or can't be made.
    """
    here = Path(__file__).parent
    startup = folder / "startup"
    try:
        startup.mkdir(parents=True)
    except FileExistsError as err:
        raise ConfigError(f"{folder} exists, and nothing in it is replaced: name another folder") from err
    except OSError as err:
        raise ConfigError(f"can't make the folder {folder}: {err}") from err
    # All but the devices serves any beamline.
    for path in sorted((here / "sim" / "startup").iterdir()):
        if path.suffix in (".py", ".yaml") and path.name != "10-devices.py":
            text = path.read_text(encoding="utf-8")
            text = text.replace('title="the simulated beamline"', f"title={title!r}").replace(', monitor_key="i0"', "")
            (startup / path.name).write_text(text, encoding="utf-8")
    shutil.copyfile(here / "template" / "10-devices.py", startup / "10-devices.py")
    shutil.copyfile(here / "template" / "config.yaml", folder / "config.yaml")
    return [folder / "config.yaml", *sorted(startup.iterdir())]
