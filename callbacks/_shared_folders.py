"""Folders of another machine that are seen here too, and the files in them that documents name."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from bluesky_cdi.callbacks._frame_files import path_of
from bluesky_cdi.errors import ConfigError, ScanFileError


@dataclass(frozen=True)
class SharedFolders:
    """Folders of frames on another machine, and where this machine has them; files elsewhere are not opened.

    Attributes
    ----------
    pairs : tuple of tuple of str
        There, here: absolute and plain, links of this machine followed; the deepest first.
    """

    pairs: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, pairs: Iterable[Sequence[str]]) -> SharedFolders:
        """Make a table of pairs in any order.

        Parameters
        ----------
        pairs : iterable of (str, str)
            Absolute paths: there, here.
        """
        # Links are followed: what lies in a folder is known by its own name.
        plain = [(os.path.normpath(there), os.path.realpath(here)) for there, here in pairs]
        # Of several that hold a file the deepest is meant.
        return cls(tuple(sorted(plain, key=lambda pair: -len(PurePosixPath(pair[0]).parts))))

    @classmethod
    def parse(cls, texts: Sequence[str]) -> SharedFolders:
        """Read folders as a command line has them.

        Parameters
        ----------
        texts : sequence of str
            ``/there=/here``, or ``/there`` where both are the same.

        Raises
        ------
        ConfigError
            If a path is not absolute, or no folder of this machine.
        """
        pairs = []
        for text in texts:
            there, _, here = text.partition("=")
            if not (there.startswith("/") and (here or there).startswith("/") and Path(here or there).is_dir()):
                raise ConfigError(
                    "--paths takes an absolute folder of the other machine and where this machine has it, "
                    f"/beamline=/mnt/beamline, or one that is the same on both, /data; got {text!r}"
                    + ("" if not (here or there).startswith("/") else f". Is {here or there} mounted here?")
                )
            pairs.append((there, here or there))
        return cls.of(pairs)

    @property
    def here(self) -> list[Path]:
        """The folders on this machine."""
        return [Path(here) for _, here in self.pairs]

    def find(self, path: str) -> Path | None:
        """Give the path that a file of the other machine has here; None: it lies in none of the folders.

        Parameters
        ----------
        path : str
            There.

        Raises
        ------
        ScanFileError
            If it leads out of the folders by a link, or can't be a path.
        """
        plain = PurePosixPath(os.path.normpath(path))
        for there, here in self.pairs:
            if plain.is_relative_to(there):
                try:
                    found = Path(os.path.realpath(Path(here) / plain.relative_to(there)))
                except ValueError as err:
                    raise ScanFileError(f"{str(plain)!r:.200} can't be the path of a file: {err}") from err
                if not any(found.is_relative_to(each) for each in self.here):
                    raise ScanFileError(
                        f"{plain} must lie below {there}; here a link leads to {found}. Files outside of the folders "
                        "of --paths are not opened: name that one too, if it may be read."
                    )
                return found
        return None

    def translate(self, name: str, doc: Mapping[str, Any]) -> dict[str, Any]:
        """Give a document with paths of this machine; one that names no file comes back as it is.

        Parameters
        ----------
        name : str
            Its kind.
        doc : Mapping
            The document.

        Raises
        ------
        ScanFileError
            If its file lies in none of the folders.
        """
        if name == "stream_resource" and "uri" in doc:
            return {**doc, "uri": self._must_have(path_of(str(doc["uri"]))).as_uri()}
        if name in ("resource", "stream_resource"):
            # Of older schemas, where the two parts are joined.
            path = self._must_have(os.path.join(str(doc.get("root", "")) or "/", str(doc["resource_path"])))
            return {**doc, "root": "/", "resource_path": str(path.relative_to("/"))}
        return dict(doc)

    def _must_have(self, path: str) -> Path:
        if (found := self.find(path)) is None:
            parent = PurePosixPath(os.path.normpath(path)).parent
            raise ScanFileError(
                f"its frames lie in {path}, in no folder that files may be read from here. Name it: --paths "
                f"{parent} where it has the same name here, --paths {parent}=/its/folder/here elsewhere."
            )
        return found
