"""HDF5 files of other people: what in them leads to other files is looked at before it is followed.

A dataset may keep its values in any file of this machine (external storage), a link may lead into any other HDF5 file,
and a virtual dataset is made of datasets of others. Whoever hands on such a file could have this program read, and then
publish, what only its user may read. So external storage is refused, and the others must stay in the folder of the file
or below it, or in one of the folders that the variable `LINK_FOLDERS` of the environment names.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py

from bluesky_cdi.errors import ScanFileError

LINK_FOLDERS = "BLUESKY_CDI_LINKS"
# Variables of the environment that name folders where HDF5 looks for external links and virtual datasets' sources.
EXTERNAL_PREFIX, VIRTUAL_PREFIX = "HDF5_EXT_PREFIX", "HDF5_VDS_PREFIX"
# As many links as this, one behind the other, are no file of measured data but a circle.
_LINKS_MAX = 64


class _Checked:
    """A group whose members are looked at before they are opened."""

    _guard: _Guard

    def __getitem__(self, name: Any) -> Any:
        if isinstance(name, (str, bytes)):
            self._guard.follow(self, name)
        found = super().__getitem__(name)  # type: ignore[misc]
        if isinstance(found, h5py.Dataset):
            self._guard.check_dataset(found)
        if isinstance(found, h5py.Group):
            self._guard.check_place(found.file.filename, found.name)
            return CheckedGroup(found.id, self._guard)
        return found

    def get(self, name: Any, default: Any = None) -> Any:
        """Give a member, or a default where there is none.

        Parameters
        ----------
        name : str
            Way to it.
        default : object
            What stands for an absent one.
        """
        try:
            return self[name]
        except KeyError:
            return default

    def __contains__(self, name: Any) -> bool:
        if isinstance(name, (str, bytes)):
            self._guard.follow(self, name)
        return bool(super().__contains__(name))  # type: ignore[misc]


class CheckedGroup(_Checked, h5py.Group):  # type: ignore[misc]
    """A group of a `CheckedFile`."""

    def __init__(self, identifier: Any, guard: _Guard) -> None:
        super().__init__(identifier)
        self._guard = guard


class CheckedFile(_Checked, h5py.File):  # type: ignore[misc]
    """An HDF5 file for reading, of which nothing leads to other files but where that is allowed.

    Members that lead elsewhere raise `ScanFileError` when they are asked for; all others can be read.

    Parameters
    ----------
    path : path
        The file.
    **options
        As for ``h5py.File``.
    """

    def __init__(self, path: Path | str, **options: Any) -> None:
        super().__init__(path, "r", **options)
        self._guard = _Guard(Path(path))


class _Guard:
    """Knows which folders a file may lead to, and looks whether it does.

    Parameters
    ----------
    path : Path
        The file that was opened first.
    """

    def __init__(self, path: Path) -> None:
        named = (Path(each).expanduser() for each in os.environ.get(LINK_FOLDERS, "").split(os.pathsep) if each)
        # A file may be reached by a symbolic link to it; HDF5 looks beside the link and beside the file.
        self._folders = [*dict.fromkeys(each.resolve() for each in (path.parent, path.resolve().parent, *named))]
        self._sources: set[tuple[Path, str]] = set()

    def follow(self, group: Any, name: str | bytes) -> None:
        """Look at every link on the way from a group to one of its members; none needs to be there.

        Parameters
        ----------
        group : h5py.Group
            Where the way begins.
        name : str or bytes
            Where it leads.
        """
        text = name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name
        self._follow(group.file, "/" if text.startswith("/") else group.name, text, _LINKS_MAX)

    def check_place(self, filename: str, place: str) -> None:
        """Refuse what HDF5 found elsewhere than where it was looked for: it also tries the working directory."""
        self._check_target(Path(filename), Path(filename), place)

    def check_dataset(self, dataset: h5py.Dataset) -> None:
        """Refuse a dataset whose values lie where they may not.

        Raises
        ------
        ScanFileError
            If they lie in raw files beside HDF5, or in a file outside the folders.
        """
        path = Path(dataset.file.filename)
        self.check_place(str(path), dataset.name)
        if dataset.external:
            raise ScanFileError(
                f"{path}: the values of `{dataset.name}` lie in {dataset.external[0][0]}, a file that is no HDF5 "
                "(external storage): such files are not read. Write the values into the file itself (h5repack does)."
            )
        if dataset.is_virtual:
            for source in dataset.virtual_sources():
                self._check_source(dataset, source.file_name, source.dset_name)

    def _follow(self, file: h5py.File, start: str, way: str, links_left: int) -> None:
        parts, here = deque(_parts(way)), "/" + "/".join(_parts(start))
        while parts:
            here = f"{here.rstrip('/')}/{parts.popleft()}"
            kind, values = _link(file, here)
            if kind is None:
                return  # not there: HDF5 says so itself
            if kind == h5py.h5l.TYPE_HARD:
                continue
            links_left -= 1
            if links_left < 0:
                raise ScanFileError(f"{file.filename}: the links at `{here}` lead in a circle. Write the file again.")
            if kind == h5py.h5l.TYPE_EXTERNAL:
                for target in self._targets(Path(file.filename), values[0], here, EXTERNAL_PREFIX):
                    with _opened(target) as other:
                        self._follow(other, "/", "/".join([values[1], *parts]), links_left)
                return
            parts.extendleft(reversed(_parts(values[0])))
            here = "/" if values[0].startswith("/") else here.rpartition("/")[0]

    def _check_source(self, dataset: h5py.Dataset, filename: str, name: str) -> None:
        path = Path(dataset.file.filename)
        looked = VIRTUAL_PREFIX, prefix_of(dataset)
        targets = [path] if filename == "." else self._targets(path, filename, dataset.name, *looked)
        for target in targets:
            key = (target.resolve(), name)
            if key in self._sources:
                continue
            self._sources.add(key)
            with _opened(target) as other:
                self._follow(other, "/", name, _LINKS_MAX)
                source = other.get(name)
                if isinstance(source, h5py.Dataset):
                    self.check_dataset(source)

    def _targets(self, path: Path, filename: str, place: str, variable: str, prefix: str = "") -> list[Path]:
        """Find the files that HDF5 would open; refuse what lies outside. In a name, ``%b`` stands for numbers."""
        found = []
        for name in _numbered(path, filename, variable, prefix):
            tried = places_of(path, name, variable, prefix)
            there = [each for each in tried if os.path.lexists(each)][:1]
            for each in there or tried[:1]:
                self._check_target(each, path, place)
            found += [each for each in there if _is_file(each, path, place)]
        return found

    def _check_target(self, target: Path, path: Path, place: str) -> None:
        real = target.resolve()
        if not any(real.is_relative_to(folder) for folder in self._folders):
            raise ScanFileError(
                f"{path}: `{place}` leads to {real}, outside of the file's folder {self._folders[0]}: it is not "
                f"followed. Bring that file there, or, if you trust it, name its folder in the environment variable "
                f"{LINK_FOLDERS} (several are separated as in PATH)."
            )


def _parts(way: str) -> list[str]:
    return [part for part in way.split("/") if part not in ("", ".")]


def _link(file: h5py.File, place: str) -> tuple[int | None, tuple[str, ...]]:
    """Give the kind of a link, without following it, and what it says; None where there is none."""
    links, name = file.id.links, os.fsencode(place)
    try:
        kind = links.get_info(name).type
        if kind == h5py.h5l.TYPE_HARD:
            return kind, ()
        found = links.get_val(name)
    except (KeyError, RuntimeError, ValueError):
        return None, ()
    return kind, tuple(os.fsdecode(each) for each in (found if isinstance(found, tuple) else (found,)))


def places_of(path: Path, name: str, variable: str = VIRTUAL_PREFIX, prefix: str = "") -> list[Path]:
    """List where HDF5 looks for a file that another one names, in its order.

    Parameters
    ----------
    path : Path
        The file that names it.
    name : str
        Its name there.
    variable : str
        Variable of the environment that names folders in which it is looked for first.
    prefix : str
        Another such folder; see `prefix_of`.
    """
    # An absolute name is tried as it is; what is looked for elsewhere is its last part.
    itself, last = ([Path(name)], os.path.basename(name)) if os.path.isabs(name) else ([], name)
    first = [folder for folder in (*os.environ.get(variable, "").split(os.pathsep), prefix) if folder]
    folders = [*map(Path, first), path.absolute().parent, Path(), path.resolve().parent]
    return list(dict.fromkeys([*itself, *(folder / last for folder in folders)]))


def prefix_of(dataset: h5py.Dataset) -> str:
    """Give the folder that a virtual dataset was opened with for its sources; empty where with none."""
    return os.fsdecode(dataset.id.get_access_plist().get_virtual_prefix())


def _numbered(path: Path, filename: str, variable: str, prefix: str) -> Iterator[str]:
    """Give the names that a name of a virtual dataset's source stands for: one, or with ``%b`` those that are there."""
    if "%b" not in filename:
        yield filename.replace("%%", "%")
        return
    # Also when there is none yet, its folder is known.
    yield filename.replace("%b", "0").replace("%%", "%")
    folder, _, name = filename.rpartition("/")
    places = places_of(path, filename.replace("%b", "0"), variable, prefix)
    for beside in dict.fromkeys(each.parent for each in places):
        for each in sorted(beside.glob(name.replace("%b", "*"))) if beside.is_dir() else ():
            yield os.path.join(folder, each.name)


def _is_file(target: Path, path: Path, place: str) -> bool:
    if not target.exists():
        return False
    if not target.is_file():
        # Opening a pipe would wait for ever.
        raise ScanFileError(f"{path}: `{place}` leads to {target}, which is no file. Write the file again.")
    return True


def _opened(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r", libver="latest", swmr=True)
    except OSError:
        return h5py.File(path, "r")
