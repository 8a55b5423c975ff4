"""Checkpoints of reconstructions in files: whole, or not at all, and refused where anything is wrong."""

from __future__ import annotations

import io
import json
import math
import os
import time
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bluesky_cdi.errors import ScanFileError
from bluesky_cdi.io._files import reading, written_whole

# Of the file and of what a reconstructor's checkpoint holds: another number is not read.
FORMAT_VERSION = 1
FORM = "a checkpoint"
HEADER = "header"
SUFFIX = ".npz"

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class CheckpointHeader:
    """What a checkpoint belongs to.

    Attributes
    ----------
    raw_uid : str
        The raw run.
    reconstruction_uid : str
        The derived run that was being made of it.
    frame_shape : tuple of int
        (H, W) of the frames.
    settings : Mapping
        The sections of the configuration that it was made with.
    fingerprint : Mapping
        What must be the same where it goes on, by name.
    saved_at : float
        Seconds since 1970; set as it is saved.
    """

    raw_uid: str
    reconstruction_uid: str
    frame_shape: tuple[int, int]
    settings: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: Mapping[str, Any] = field(default_factory=dict)
    saved_at: float = 0.0


class CheckpointFile:
    """The file of one reconstruction's newest checkpoint, ``<reconstruction uid>.npz``.

    Parameters
    ----------
    folder : Path
        Where it lies; made when the first one is saved.
    header : CheckpointHeader
        What the file is to say of itself.
    """

    def __init__(self, folder: Path, header: CheckpointHeader) -> None:
        self.path = folder / f"{header.reconstruction_uid}{SUFFIX}"
        self._header = header

    def save(self, state: Arrays) -> None:
        """Replace the file. After a crash or a power failure there is the old one or the new one.

        Parameters
        ----------
        state : Mapping
            Arrays, as a reconstructor's `checkpoint` gives them.

        Raises
        ------
        ScanFileError
            If it can't be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise ScanFileError(f"can't make the folder of checkpoints {self.path.parent}: {err}") from err
        about = {"format": FORMAT_VERSION, **asdict(self._header), "saved_at": time.time()}
        with written_whole(self.path) as partial, partial.open("wb") as file:
            # Stored as they are: complex images hardly compress, and the reconstruction waits meanwhile.
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                for name, values in {HEADER: np.array(json.dumps(about)), **state}.items():
                    with archive.open(_member(name), "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, np.asarray(values), allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())

    def remove(self) -> None:
        """Remove the file, and what a killed process left of one that it was writing."""
        remove_checkpoint(self.path)


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint, and what a killed process left of one that it was writing; there may be none.

    Parameters
    ----------
    path : path
        The checkpoint.

    Raises
    ------
    ScanFileError
        If it can't be removed.
    """
    try:
        for file in [path, *path.parent.glob(f".{path.name}.*.partial")]:
            file.unlink(missing_ok=True)
    except OSError as err:
        raise ScanFileError(f"can't remove the checkpoint {path}: {err}") from err


def read_checkpoint(
    path: Path, names: Collection[str] | None = None
) -> tuple[CheckpointHeader, dict[str, npt.NDArray[Any]]]:
    """Read a checkpoint.

    Parameters
    ----------
    path : Path
        The file.
    names : collection of str, optional
        Names of the arrays that are wanted; all by default.

    Returns
    -------
    header : CheckpointHeader
    state : dict
        Arrays by name.

    Raises
    ------
    ScanFileError
        If there is no such file, it is damaged or cut short, no checkpoint, or of another version.
    """
    with reading(path, FORM), zipfile.ZipFile(path) as archive:
        members = {member.filename: member for member in archive.infolist()}
        if _member(HEADER) not in members:
            raise ScanFileError(f"{path} is no checkpoint of this package: it has no header. Remove it.")
        header = _header(_array(archive, members.pop(_member(HEADER)), path), path)
        wanted = members if names is None else {_member(name) for name in names}
        if missing := set(wanted) - members.keys():
            raise ScanFileError(f"the checkpoint {path} lacks {', '.join(sorted(missing))}; it can't be used")
        return header, {name.removesuffix(".npy"): _array(archive, members[name], path) for name in wanted}


def _member(name: str) -> str:
    return f"{name}.npy"


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> npt.NDArray[Any]:
    """Read one array; nothing is read, or made room for, beyond what the file really holds."""
    if member.compress_type != zipfile.ZIP_STORED or member.file_size > path.stat().st_size:
        raise ScanFileError(
            f"{member.filename} of {path} states {member.file_size} bytes (compression {member.compress_type}); "
            "a checkpoint holds its arrays as they are. It is damaged, or another program's."
        )
    # Reading a member to its end checks its checksum.
    content = archive.read(member)
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(stream)
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(content) - stream.tell():
        raise ScanFileError(
            f"{member.filename} of {path} states {dtype} {shape}, but holds something else: it is damaged"
        )
    stream.seek(0)
    return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))


def _header(values: npt.NDArray[Any], path: Path) -> CheckpointHeader:
    about = json.loads(str(values))
    version = about.pop("format", None) if isinstance(about, dict) else None
    if version != FORMAT_VERSION:
        raise ScanFileError(
            f"the checkpoint {path} has the format {version}; this version of the package reads {FORMAT_VERSION}. "
            "Reconstruct from the start instead, or with the version that wrote it."
        )
    height, width = about.pop("frame_shape")
    return CheckpointHeader(**about, frame_shape=(int(height), int(width)))
