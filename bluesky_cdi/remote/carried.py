"""Files that a configuration names: read on the session's machine, put down on the host.

On a host, no path of a session's configuration is opened: each is that of a file that was carried there, or of none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bluesky_cdi.errors import ConfigError

# Weights of the largest network here have a tenth of it.
BYTES_MAX = 2**28
# Keys whose values are files; that of the library is a folder.
_LIBRARY = "library"
_KEYS = (
    *(("detector", key) for key in ("dark", "flat", "mask", "bad_pixels")),
    *(("probe", key) for key in ("file", _LIBRARY)),
    *(("reconstructor", key) for key in ("weights", "uncertainty_weights")),
)
_WEIGHTS, _RECORD = ".safetensors", ".json"
# Between a file and the name of an array in it.
_INSIDE = "::"


def carry(config: Mapping[str, Any]) -> dict[str, bytes]:
    """Read the files that a configuration names.

    Parameters
    ----------
    config : Mapping
        Its sections, as JSON has them.

    Returns
    -------
    dict of str to bytes
        By their paths; those that are not there are left out.

    Raises
    ------
    ConfigError
        If they are too large to be sent, or one can't be read.
    """
    found: dict[str, bytes] = {}
    for section, key in _KEYS:
        for text in _named(config, section, key):
            path = Path(text.partition(_INSIDE)[0])
            here = path.expanduser()
            if key == _LIBRARY:
                pairs = [(path / each.name, each) for each in sorted(here.glob("*.npz"))]
            else:
                pairs = [(path, here)]
                if here.suffix == _WEIGHTS:
                    pairs.append((path.with_suffix(_RECORD), here.with_suffix(_RECORD)))
            for name, each in pairs:
                if each.is_file():
                    found[str(name)] = _content(each)
            if (size := sum(map(len, found.values()))) > BYTES_MAX:
                raise ConfigError(
                    f"the files that the configuration names must have at most {BYTES_MAX // 2**20} MiB to be sent to "
                    f"a host; with {path} they have {size // 2**20} MiB"
                )
    return found


def put_down(config: dict[str, Any], files: Mapping[str, bytes], folder: Path) -> None:
    """Write carried files, and name them in the configuration in place of those of the session's machine.

    Parameters
    ----------
    config : dict
        As for `carry`; changed.
    files : Mapping
        As `carry` gives them.
    folder : path
        Where they go.
    """
    folders: dict[str, Path] = {}

    def here(key: str, text: str) -> str:
        path, inside, name = text.partition(_INSIDE)
        parent, rest = (path, "") if key == _LIBRARY else (str(Path(path).parent), Path(path).name)
        return str(folders.setdefault(str(Path(parent)), folder / str(len(folders))) / rest) + inside + name

    for section, key in _KEYS:
        value = config.get(section, {}).get(key)
        if isinstance(value, str):
            config[section][key] = here(key, value) if _is_path(key, value) else value
        elif value is not None:
            config[section][key] = [here(key, each) if _is_path(key, each) else each for each in value]
    for path, content in files.items():
        if (target := folders.get(str(Path(path).parent))) is not None:
            target.mkdir(parents=True, exist_ok=True)
            (target / Path(path).name).write_bytes(content)


def _named(config: Mapping[str, Any], section: str, key: str) -> list[str]:
    value = config.get(section, {}).get(key)
    return [each for each in ([value] if isinstance(value, str) else value or ()) if _is_path(key, each)]


def _is_path(key: str, value: str) -> bool:
    """Tell a path from the name of shipped weights."""
    return "weights" not in key or value.endswith(_WEIGHTS)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as err:
        raise ConfigError(f"the host needs {path}, which can't be read: {err}") from err
