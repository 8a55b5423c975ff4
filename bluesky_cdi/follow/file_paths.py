"""Files that documents name, where this machine has them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from bluesky_cdi.callbacks import path_of
from bluesky_cdi.errors import ConfigError, ScanFileError


@dataclass(frozen=True)
class FilePaths:
    """Folders of frames at the beamline, and where this machine has them; files elsewhere are not opened.

    Attributes
    ----------
    folders : tuple of tuple of PurePosixPath and Path
        Absolute: there, here.
    """

    folders: tuple[tuple[PurePosixPath, Path], ...] = ()

    @classmethod
    def parse(cls, texts: Sequence[str]) -> FilePaths:
        """Read folders as a command line has them.

        Parameters
        ----------
        texts : sequence of str
            ``/there=/here``, or ``/there`` where both are the same.

        Raises
        ------
        ConfigError
            If a path is not absolute.
        """
        folders = []
        for text in texts:
            there, _, here = text.partition("=")
            if not there.startswith("/") or not (here or there).startswith("/"):
                raise ConfigError(
                    f"a table of paths must have absolute ones, /beamline=/mnt/beamline, or one that is the same here "
                    f"and there, /data; got {text!r}"
                )
            # Links are followed: the catalog's server serves what lies in these folders by their own names.
            folders.append((PurePosixPath(os.path.normpath(there)), Path(here or there).resolve()))
        # Of several that hold a file the deepest is meant.
        return cls(tuple(sorted(folders, key=lambda pair: -len(pair[0].parts))))

    @property
    def here(self) -> list[Path]:
        """The folders on this machine."""
        return [here for _, here in self.folders]

    def translate(self, name: str, doc: dict[str, Any]) -> dict[str, Any]:
        """Give a document with paths of this machine; one that names no file comes back as it is.

        Parameters
        ----------
        name : str
            Its kind.
        doc : dict
            The document.

        Raises
        ------
        ScanFileError
            If its file lies in none of the folders.
        """
        if name == "stream_resource" and "uri" in doc:
            return {**doc, "uri": self._here(path_of(str(doc["uri"]))).as_uri()}
        if name in ("resource", "stream_resource"):
            # Of older schemas, where the two parts are joined.
            path = self._here(os.path.join(str(doc.get("root", "")) or "/", str(doc["resource_path"])))
            return {**doc, "root": "/", "resource_path": str(path.relative_to("/"))}
        return doc

    def _here(self, path: str) -> Path:
        plain = PurePosixPath(os.path.normpath(path))
        for there, here in self.folders:
            if plain.is_relative_to(there):
                return here / plain.relative_to(there)
        raise ScanFileError(
            f"its frames lie in {path}, in no folder that files may be read from here. Name it: --paths "
            f"{plain.parent} where it has the same name here, --paths {plain.parent}=/its/folder/here elsewhere."
        )
