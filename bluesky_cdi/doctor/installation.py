"""Versions, GPU, weights, disks, and whether a catalog's server can be started."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bluesky_cdi import __version__
from bluesky_cdi.config import Config
from bluesky_cdi.doctor.findings import Finding
from bluesky_cdi.errors import CatalogError, ConfigError, HostError, WeightsError

PACKAGES = ("torch", "bluesky", "ophyd", "tiled", "bluesky-tiled-plugins")
# Room for some thousand frames of a large detector; below it a day's scan may pause.
ROOMY_BYTES = 20e9
PROXIES = ("http_proxy", "https_proxy", "all_proxy")


def examine_installation(config: Config) -> Iterator[Finding]:
    """Check what a session needs of the machine, one thing after the other.

    Parameters
    ----------
    config : Config
        Which device, weights, folders and catalog are meant.
    """
    yield versions()
    yield gpu(config.reconstructor.device)
    yield from hosts(config)
    yield weights(config)
    yield disk(Path(config.catalog.directory).expanduser(), config.catalog.reserve_mb)
    yield proxies(config)
    yield server(config)


def versions() -> Finding:
    """Name the versions of Python and of what matters."""
    found = {"python": platform.python_version(), "bluesky_cdi": __version__}
    missing = []
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            missing.append(name)
    text = ", ".join(f"{name} {each}" for name, each in found.items())
    if missing:
        return Finding("versions", "fail", f"{text}; without {', '.join(missing)}", f"pip install {' '.join(missing)}")
    return Finding("versions", "ok", text)


def gpu(device: str) -> Finding:
    """Tell on what device frames are reconstructed.

    Parameters
    ----------
    device : str
        The configured one.
    """
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        return Finding("GPU", "ok", f"{names}; reconstructor.device is {device}")
    if device.startswith("cuda"):
        advice = "Check nvidia-smi and that this PyTorch is built for CUDA, or set reconstructor.device to auto."
        return Finding("GPU", "fail", f"none that PyTorch can use, but reconstructor.device is {device}", advice)
    advice = (
        "Live images follow slow scans of small frames only; for more, install a PyTorch for CUDA where "
        "a GPU is: here, or on another machine (reconstructor.host, docs/gpu-host.md)."
    )
    return Finding("GPU", "warn", f"none; {os.cpu_count()} CPU cores", advice)


def hosts(config: Config) -> Iterator[Finding]:
    """Ask each host that is configured whether it is there.

    Parameters
    ----------
    config : Config
        Which hosts, and what to do without one.
    """
    from bluesky_cdi.remote.calling import state_of

    settings = config.reconstructor.host
    for address in settings.address:
        try:
            state = state_of(address, settings)
        except (ConfigError, HostError) as err:
            what = "on this machine" if settings.otherwise == "local" else "not at all"
            advice = f"Without a host runs are reconstructed {what}. docs/gpu-host.md tells how to look for the cause."
            yield Finding("host", "warn" if settings.otherwise == "local" else "fail", str(err), advice)
            continue
        text = (
            f"{address} answers: bluesky_cdi {state.version}, {state.sessions} of {state.max_sessions} sessions, "
            f"{', '.join(state.devices)}"
        )
        if state.version != __version__:
            yield Finding("host", "warn", text, f"Here it is {__version__}: install the same on both machines.")
        elif state.sessions >= state.max_sessions:
            yield Finding("host", "warn", text, "It is full: end a session, or start it with more --max-sessions.")
        else:
            yield Finding("host", "ok", text)


def weights(config: Config) -> Finding:
    """Check that the network's weights are there and whole.

    Parameters
    ----------
    config : Config
        Which weights.
    """
    from bluesky_cdi.models.weights import weights_checksum

    settings = config.reconstructor
    if settings.name != "pinn":
        return Finding("weights", "ok", f"none needed: the reconstructor is {settings.name}")
    try:
        return Finding("weights", "ok", f"{settings.weights}, SHA-256 {weights_checksum(settings.weights)[:12]}...")
    except WeightsError as err:
        return Finding("weights", "fail", str(err), "Or set reconstructor.name to lsqml, which needs none.")


def disk(folder: Path, reserve_mb: float) -> Finding:
    """Check room and permission where journal, frames, results and an embedded catalog go.

    Parameters
    ----------
    folder : Path
        The session's.
    reserve_mb : float
        What must be left free, megabytes.
    """
    from bluesky_cdi.recording import free_bytes

    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        return Finding("disk", "fail", f"{folder} can't be written", "Set catalog.directory to a folder of yours.")
    free = free_bytes(folder)
    text = f"{folder}: {free / 1e9:.1f} GB free (journal, frames, results, catalog)"
    if free < reserve_mb * 1e6:
        return Finding("disk", "fail", text, f"Make room: below {reserve_mb:g} MB (catalog.reserve_mb) scans pause.")
    if free < ROOMY_BYTES:
        return Finding("disk", "warn", text, "Make room, or set catalog.directory to a larger disk.")
    return Finding("disk", "ok", text)


def proxies(config: Config) -> Finding:
    """Tell which proxies the environment names: what concerns the session's own server passes them by.

    Parameters
    ----------
    config : Config
        Whether the catalog is elsewhere.
    """
    named = [name for name in (*PROXIES, *map(str.upper, PROXIES)) if os.environ.get(name)]
    if not named:
        return Finding("proxies", "ok", "none in the environment")
    if config.catalog.uri is None:
        return Finding("proxies", "ok", f"{', '.join(named)}; not used for the session's own server")
    return Finding("proxies", "warn", ", ".join(named), "Add the catalog's host to NO_PROXY if it can't be reached.")


def server(config: Config) -> Finding:
    """Start a catalog's server for a moment, in a folder of its own; or reach the configured one.

    Parameters
    ----------
    config : Config
        Which catalog.
    """
    from bluesky_cdi.catalog import open_catalog
    from bluesky_cdi.catalog.keeper import Keeper
    from bluesky_cdi.catalog.server import served_at

    settings = config.catalog
    try:
        if settings.uri is not None:
            catalog = open_catalog(settings.uri, settings.api_key)
            text = f"{catalog.uri} answers, {len(catalog.raw)} runs"
            catalog.close()
            return Finding("server", "ok", text)
        with tempfile.TemporaryDirectory() as folder, Keeper(Path(folder)) as keeper:
            open_catalog(keeper.uri).close()
    except CatalogError as err:
        return Finding("server", "fail", str(err))
    except Exception as err:  # noqa: BLE001 - whatever keeps it from starting is what is looked for
        advice = "Look at the messages above; catalog.in_process: true does without a process of its own."
        return Finding("server", "fail", f"can't be started or reached: {type(err).__name__}: {err}", advice)
    running = served_at(settings.directory)
    where = "" if running is None else f"; a session has {settings.directory} now, so another needs a folder of its own"
    return Finding("server", "ok", f"starts and answers on a free port{where}")
