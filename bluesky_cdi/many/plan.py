"""Which scans are meant, what their results are called, and which of them are there already."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bluesky_cdi.errors import BlueskyCDIError, ScanFileError
from bluesky_cdi.io.ptychodus import companion_path
from bluesky_cdi.many.rows import Row, made_of, row_of_result
from bluesky_cdi.many.task import CatalogRun, ScanFile, Source, Task

SUFFIXES = (".cxi", ".npz", ".h5", ".hdf5", ".nxs")


def files_in(paths: Sequence[Path]) -> list[Path]:
    """List the files that are meant: those that are named, and those of a scan's endings in the folders that are named.

    Parameters
    ----------
    paths : sequence of Path
        Files and folders. Folders within those are not looked into; neither are hidden files.

    Returns
    -------
    list of Path
        Absolute, each once, those of a folder in the order of their names. Of Ptychodus' two files the one with frames.

    Raises
    ------
    ScanFileError
        If a folder holds no file with one of the endings.
    """
    found: list[Path] = []
    for path in (path.expanduser().absolute() for path in paths):
        if not path.is_dir():
            found.append(path)
            continue
        inside = [each for each in sorted(path.iterdir()) if each.suffix.lower() in SUFFIXES and each.is_file()]
        beside = {companion_path(each) for each in inside}
        inside = [each for each in inside if each not in beside and not each.name.startswith(".")]
        if not inside:
            raise ScanFileError(f"{path} holds no file that ends in {', '.join(SUFFIXES)}. Name a folder of scans.")
        found += inside
    return list(dict.fromkeys(found))


def named(sources: Sequence[Source]) -> dict[str, Source]:
    """Name scans by their files, with the folder where that alone is not enough; runs by scan number and uid.

    Parameters
    ----------
    sources : sequence of Source
        The scans.

    Raises
    ------
    BlueskyCDIError
        If two would have one name.
    """
    files = [source.path for source in sources if isinstance(source, ScanFile)]
    stems = Counter(path.stem for path in files)
    names: dict[str, Source] = {}
    for source in sources:
        name = _name_of(source, stems)
        if name in names:
            raise BlueskyCDIError(
                f"{names[name].says} and {source.says} would both be written to {name}.cxi. "
                "Reconstruct them into two folders, or rename one."
            )
        names[name] = source
    return names


def planned(tasks: Sequence[Task], *, force: bool) -> tuple[list[Row], list[Task]]:
    """Find which tasks have their whole result already.

    Parameters
    ----------
    tasks : sequence of Task
        All of them.
    force : bool
        Do them all again, whatever there is.

    Returns
    -------
    list of Row
        Those that are done.
    list of Task
        Those that are not.

    Raises
    ------
    BlueskyCDIError
        If a file that would be written is a scan that is read; or, without `force`, it was made in another way, or is
        no result.
    """
    sources = {task.source.path.resolve() for task in tasks if isinstance(task.source, ScanFile)}
    rows: list[Row] = []
    left: list[Task] = []
    for task in tasks:
        if task.out.resolve() in sources:
            raise BlueskyCDIError(f"{task.out} is what is read; measured data are not replaced. Name another folder.")
        if force or not task.out.exists():
            left.append(task)
            continue
        if differ := _differing(task):
            raise BlueskyCDIError(
                f"{task.out} exists and is no result of {task.source.says} by these settings: {differ}. "
                "Name another folder, or replace it with --force, which makes all anew."
            )
        rows.append(row_of_result(task, earlier=True))
    return rows, left


def _name_of(source: Source, stems: Mapping[str, int]) -> str:
    if isinstance(source, ScanFile):
        path = source.path
        return path.stem if stems[path.stem] == 1 else f"{path.parent.name}-{path.stem}"
    if isinstance(source, CatalogRun):
        return source.uid[:8] if source.number is None else f"scan{source.number:05d}-{source.uid[:8]}"
    raise TypeError(f"a scan comes from a file or a catalog; got {type(source).__name__}")


def _differing(task: Task) -> str:
    """Say in which keys the task that made a file differs from this one; empty: in none."""
    try:
        before = made_of(task.out)
    except ScanFileError as err:
        return str(err)
    if not before:
        return "something else made it"
    old, new = _flat(before), _flat(task.as_notes())
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return ", ".join(f"{key} was {old.get(key)}, is {new.get(key)}" for key in keys)


def _flat(notes: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in notes.items():
        found |= _flat(value, f"{before}{key}.") if isinstance(value, Mapping) else {f"{before}{key}": value}
    return found
