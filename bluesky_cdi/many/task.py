"""What one worker is given: a scan, how it is reconstructed, and where the result goes. All of it can be sent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bluesky_cdi.config import Config
from bluesky_cdi.io.ptychodus import companion_path

if TYPE_CHECKING:
    from bluesky_cdi.reconstruction.recorded import Recorded

# Sections of a configuration that a result depends on, and keys of them that it doesn't.
SECTIONS = ("reconstructor", "probe", "detector", "documents")
ELSEWHERE = ("threads", "device", "in_process", "host")


@dataclass(frozen=True)
class Method:
    """How scans are reconstructed.

    Parameters
    ----------
    config : Config
        As for `bluesky_cdi.reconstruction.batch.reconstruct`.
    iterations : int
        Most iterations.
    focus_to_sample_m : float, optional
        Declares near-field scans in CXI files, metres.
    probe : Path, optional
        File of a first guess of the probe.
    orientation, check_in : bool
        Whether orientation and probe are checked before.
    """

    config: Config
    iterations: int
    focus_to_sample_m: float | None = None
    probe: Path | None = None
    orientation: bool = True
    check_in: bool = True

    def as_notes(self) -> dict[str, Any]:
        """Give in plain values what a result depends on; nothing of the catalog, which may have a key."""
        notes = self.config.as_notes()
        sections = {name: dict(notes[name]) for name in SECTIONS if name in notes}
        for key in ELSEWHERE:
            sections.get("reconstructor", {}).pop(key, None)
        return {
            "iterations": self.iterations,
            "focus_to_sample_m": self.focus_to_sample_m,
            "probe_file": None if self.probe is None else _file_notes(self.probe),
            "orientation": self.orientation,
            "check_in": self.check_in,
            **sections,
        }


class Source(Protocol):
    """Where a scan comes from."""

    @property
    def says(self) -> str:
        """The source in a few words."""

    def as_notes(self) -> dict[str, Any]:
        """Give in plain values what tells this source from another, and from itself once it is changed."""

    def read(self, method: Method) -> Recorded:
        """Read the scan."""


@dataclass(frozen=True)
class ScanFile:
    """A recorded scan in a file.

    Parameters
    ----------
    path : Path
        The file, absolute, where workers find it too.
    """

    path: Path

    @property
    def says(self) -> str:
        """The file's path."""
        return str(self.path)

    def as_notes(self) -> dict[str, Any]:
        """Give name, size and time of change; of Ptychodus' two files those of both."""
        beside = companion_path(self.path)
        return {"file": _file_notes(self.path), **({"beside": _file_notes(beside)} if beside.is_file() else {})}

    def read(self, method: Method) -> Recorded:
        """Read the scan."""
        from bluesky_cdi.reconstruction.recorded import recorded_file

        return recorded_file(self.path, method.config, method.focus_to_sample_m)


@dataclass(frozen=True)
class CatalogRun:
    """A raw run of a catalog, which each worker opens for itself.

    Parameters
    ----------
    uid : str
        Of the run.
    number : int or None
        Its scan number.
    directory : Path, optional
        Folder of the catalog, absolute; else the configured catalog.
    unfinished : bool
        Take a run without a stop document.
    """

    uid: str
    number: int | None
    directory: Path | None = None
    unfinished: bool = False

    @property
    def says(self) -> str:
        """Scan number and uid."""
        return f"run {self.uid}" if self.number is None else f"scan {self.number}, run {self.uid}"

    def as_notes(self) -> dict[str, Any]:
        """Give the uid: a run does not change."""
        return {"run": self.uid}

    def read(self, method: Method) -> Recorded:
        """Read the run, with the probe that its newest usable result has found, unless another one is chosen."""
        from bluesky_cdi.catalog import open_catalog
        from bluesky_cdi.reconstruction.recorded import Recorded
        from bluesky_cdi.recorded_run import recorded_run, with_known_probe

        config, settings = method.config, method.config.catalog
        where = self.directory or settings.uri or settings.directory
        with open_catalog(where, None if self.directory else settings.api_key) as catalog:
            run = recorded_run(catalog, self.uid, config, unfinished=self.unfinished)
            if method.probe is None and config.probe.file is None and config.probe.library is None:
                run = with_known_probe(catalog, run)
            return Recorded(run.scan, run.numbers)


@dataclass(frozen=True)
class Task:
    """One scan to be reconstructed.

    Parameters
    ----------
    name : str
        Of the scan among the others, and of its result.
    source : Source
        Where it comes from.
    method : Method
        How it is reconstructed.
    out : Path
        The CXI file that the result goes to, absolute, where workers can write.
    """

    name: str
    source: Source
    method: Method
    out: Path

    def as_notes(self) -> dict[str, Any]:
        """Give in plain values what tells this task's result from another's."""
        return {"source": self.source.as_notes(), "method": self.method.as_notes()}


def _file_notes(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {"name": path.name, "bytes": None, "modified_ns": None}
    found = path.stat()
    return {"name": path.name, "bytes": found.st_size, "modified_ns": found.st_mtime_ns}
