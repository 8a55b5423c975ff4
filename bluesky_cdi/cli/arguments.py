"""Types of arguments and what several commands prepare."""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bluesky_cdi.errors import BlueskyCDIError

if TYPE_CHECKING:
    from bluesky_cdi.catalog import Catalog
    from bluesky_cdi.config import CatalogConfig, Config

logger = logging.getLogger(__name__)

# How long a catalog may take for what a killed session has left.
RESTORE_S = 600.0
# In place of an address: the catalog of the session's folder.
OWN = "own"
# Where the demonstration writes, unless it is told another place.
DEMO_OUTPUT = Path("demo_output")


def count(text: str) -> int:
    """Read a whole number from 0 on."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"must be 0 or a positive whole number; got {text!r}")
    return int(text)


def positive(text: str) -> int:
    """Read a positive whole number."""
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a positive whole number; got {text!r}")
    return int(text)


def above_0(text: str) -> float:
    """Read a positive number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"must be a positive number; got {text!r}")
    return value


def add_paths(command: argparse.ArgumentParser) -> None:
    """Add the option that names folders of another machine, for `bluesky_cdi.callbacks.SharedFolders`."""
    command.add_argument(
        "--paths",
        action="append",
        default=[],
        metavar="THERE=HERE",
        help="folder of frames on the other machine, and its name here if another; repeatable (other files are not "
        "opened here)",
    )


def configured(args: argparse.Namespace) -> Config:
    """Load the configuration from the files that are named."""
    from bluesky_cdi.config import load_config

    return load_config(args.config)


def set_threads(config: Config) -> None:
    """Keep PyTorch from taking the cores that the RunEngine and the simulated detector need."""
    import torch

    if config.reconstructor.threads:
        torch.set_num_threads(config.reconstructor.threads)


def make_folder(folder: Path) -> None:
    """Make a folder, and try to write there, before the work and not after it.

    Raises
    ------
    BlueskyCDIError
        If it can't be made, or nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as err:
        raise BlueskyCDIError(f"can't write into {folder}: {err}. Name another place.") from err


def result_writer(path: Path) -> Callable[..., None]:
    """Choose the function that writes an estimate to a file, by the file's ending.

    Raises
    ------
    BlueskyCDIError
        If the ending tells no format.
    """
    from bluesky_cdi.io import write_cxi_result, write_product

    writers: dict[str, Callable[..., None]] = {".h5": write_product, ".hdf5": write_product, ".cxi": write_cxi_result}
    if path.suffix not in writers:
        raise BlueskyCDIError(f"--out must end in {', '.join(writers)}, which tells the format; got {path}")
    return writers[path.suffix]


def run_or_result(text: str) -> str | int:
    """Read which run or result is meant: a scan number or a negative index, else the beginning of a uid."""
    # A uid may consist of digits only; a scan number never has eight of them.
    return int(text) if text.lstrip("-").isdigit() and len(text) < 8 else text


def restored(catalog: Catalog, directory: Path) -> list[str]:
    """Bring to the catalog what a folder's journal holds of runs that nobody measures any more.

    Parameters
    ----------
    catalog : Catalog
        Where the runs go.
    directory : Path
        Folder of the session.

    Returns
    -------
    list of str
        What became of each run, a line each.
    """
    from bluesky_cdi.catalog import Feeder
    from bluesky_cdi.catalog.feeder import ended_files

    journal = directory / "journal"
    lines: list[str] = []
    if not ended_files(journal):
        return lines
    for fed in Feeder(journal, catalog).finish(RESTORE_S):
        line = f"restored: {fed.container} run {fed.uid}, {fed.events} events"
        line += f", {fed.refused} documents refused" if fed.refused else ""
        lines.append(line + (f" ({fed.note})" if fed.note else ""))
    lines += [f"not restored: {path}" for path in ended_files(journal)]
    return lines


@contextlib.contextmanager
def reached_catalog(
    directory: Path | None, settings: CatalogConfig, *, feed: bool = True, beside: bool = False, make: bool = False
) -> Iterator[tuple[Catalog, Path]]:
    """Serve the catalog of a folder, or connect to the configured one.

    Parameters
    ----------
    directory : Path or None
        Folder of an embedded catalog, which goes before the configured one.
    settings : CatalogConfig
        Which catalog is the configured one.
    feed : bool
        First bring to it what a session that was killed has left in its journal, unless that is for another catalog.
    beside : bool
        Use the server of a session that has the folder now, which feeds its catalog itself.
    make : bool
        Make a folder's catalog if there is none.

    Yields
    ------
    catalog : Catalog
    directory : Path
        Folder of the session's own files.

    Raises
    ------
    CatalogError, BlueskyCDIError
        If there is none, or it can't be used.
    """
    from bluesky_cdi.catalog import open_catalog, serve
    from bluesky_cdi.catalog.server import BEGIN_S, served_at

    with contextlib.ExitStack() as stack:
        local = directory or (None if settings.uri else settings.directory)
        folder = (local or settings.directory).expanduser()
        if local is None:
            uri, key = str(settings.uri), settings.api_key
        else:
            if not make:
                check_catalog(folder)
            running = served_at(folder, BEGIN_S) if beside else None
            feed = feed and running is None
            uri, key = running or stack.enter_context(serve(folder)), None
        if feed and (elsewhere := meant_elsewhere(folder, None if local else uri)):
            logger.warning("%s", elsewhere)
            feed = False
        catalog = stack.enter_context(contextlib.closing(open_catalog(uri, key)))
        if feed:
            for line in restored(catalog, folder):
                logger.warning("%s", line)
        yield catalog, folder


def meant_elsewhere(folder: Path, to: str | None = None) -> str:
    """Say that runs wait in a folder's journal for a catalog that is neither the folder's nor another; empty: none do.

    Parameters
    ----------
    folder : path
        Of a session.
    to : str, optional
        Address of that other one.
    """
    from bluesky_cdi.catalog.destination import destination_of, without_key
    from bluesky_cdi.catalog.feeder import ended_files
    from bluesky_cdi.cli.output import command_line

    journal = folder / "journal"
    if (uri := destination_of(journal)) is None or (to and uri == without_key(to)):
        return ""
    if not (waiting := ended_files(journal)):
        return ""
    return (
        f"{len(waiting)} run(s) wait in {journal} for the catalog at {uri}. Bring them there: "
        f"{command_line('restore', folder)} --to {uri} (its key as catalog.api_key of a file, -c); "
        f"or into the folder's own catalog: --to {OWN}"
    )


def check_catalog(folder: Path) -> None:
    """Refuse a folder that holds no catalog, and say which command makes or shows one.

    Raises
    ------
    BlueskyCDIError
        If it holds none.
    """
    from bluesky_cdi.catalog.destination import destination_of
    from bluesky_cdi.cli.output import command_line

    if (folder / "catalog.db").is_file():
        return
    if (uri := destination_of(folder / "journal")) is not None:
        raise BlueskyCDIError(
            f"{folder} holds no catalog of its own: its sessions wrote to {uri}. State that as catalog.uri (-c)."
        )
    message = f"{folder} holds no catalog yet: give the folder of a session"
    if (DEMO_OUTPUT / "catalog.db").is_file():
        raise BlueskyCDIError(f"{message}, such as the demo's: {command_line('browse', DEMO_OUTPUT)}")
    raise BlueskyCDIError(f"{message}, or make one: {command_line('demo')}, then {command_line('browse', DEMO_OUTPUT)}")
