"""A profile's devices: what they describe, without moving or triggering any; one test frame where that is asked for."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bluesky_cdi.config import FILES_VARIABLE, Config
from bluesky_cdi.doctor.findings import Finding
from bluesky_cdi.errors import BlueskyCDIError, DocumentError
from bluesky_cdi.units import metres_per

if TYPE_CHECKING:
    from bluesky_cdi.session import Session

# How long a device of ophyd-async may take to say what it measures.
ANSWER_S = 10.0


def examine_profile(folder: Path, figure: Path | None = None) -> Iterator[Finding]:
    """Run a profile's files with a catalog in a folder of its own, and look at the devices that they make.

    Nothing is moved. A detector is triggered only for a test frame.

    Parameters
    ----------
    folder : Path
        The profile.
    figure : Path, optional
        Where to draw a test frame, which the area detector takes for it; without it, none is taken.
    """
    with contextlib.ExitStack() as stack:
        try:
            names = _started(folder, stack)
        except Exception as err:  # noqa: BLE001 - a profile is the user's code
            where = " ".join([f"{type(err).__name__}: {err}", *getattr(err, "__notes__", ())])
            yield Finding("profile", "fail", f"{folder} does not start: {where}", "Mend the file of startup/ it names.")
            return
        session = names.get("session")
        if session is None:
            advice = "Make one (`session = Session(config)`), as bluesky-cdi new-profile does."
            yield Finding("profile", "fail", f"{folder} makes no `session`", advice)
            return
        yield Finding("profile", "ok", f"{folder} starts")
        devices = dict(_devices(names))
        described = {name: _described(session, device) for name, device in devices.items()}
        yield from (_device(name, keys) for name, keys in described.items())
        yield from _keys(session.config, {n: keys for n, keys in described.items() if isinstance(keys, Mapping)})
        yield _files(described)
        if figure is not None:
            yield _frame(session, devices, described, figure)


def _started(folder: Path, stack: contextlib.ExitStack) -> dict[str, Any]:
    """Run the startup files in one namespace, on a catalog that goes away again."""
    catalog = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    settings = catalog / "doctor.yaml"
    settings.write_text(f"catalog: {{directory: '{catalog / 'catalog'}', uri: null}}\n", encoding="utf-8")
    before = os.environ.get(FILES_VARIABLE)
    os.environ[FILES_VARIABLE] = os.pathsep.join([*([before] if before else []), str(settings)])
    stack.callback(
        lambda: os.environ.pop(FILES_VARIABLE) if before is None else os.environ.update({FILES_VARIABLE: before})
    )
    names: dict[str, Any] = {"__name__": "__main__"}
    stack.callback(lambda: names["session"].close() if "session" in names else None)
    for path in sorted((folder / "startup").glob("*.py")):
        names["__file__"] = str(path)
        try:
            exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), names)
        except Exception as err:
            err.add_note(f"in {path}")
            raise
    return names


def _devices(names: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Give what can be read, once each."""
    seen: set[int] = set()
    for name, each in names.items():
        readable = callable(getattr(each, "describe", None)) and callable(getattr(each, "read", None))
        if readable and not name.startswith("_") and not isinstance(each, type) and id(each) not in seen:
            seen.add(id(each))
            yield name, each


def _described(session: Session, device: Any) -> Mapping[str, Any] | Exception:
    """Ask a device what it would measure; what went wrong, if it does not say."""
    import asyncio
    import inspect

    try:
        said = device.describe()
        if inspect.isawaitable(said):
            said = asyncio.run_coroutine_threadsafe(_awaited(said), session.RE.loop).result(ANSWER_S)
        return dict(said)
    except Exception as err:  # noqa: BLE001 - drivers raise what they like
        return err


async def _awaited(said: Any) -> Any:
    return await said


def _device(name: str, keys: Mapping[str, Any] | Exception) -> Finding:
    if isinstance(keys, Exception):
        advice = "Is its IOC running, its prefix right, the network open to it (EPICS_CA_ADDR_LIST)?"
        return Finding(f"device {name}", "fail", f"can't be described: {type(keys).__name__}: {keys}", advice)
    if not keys:
        return Finding(
            f"device {name}", "warn", "describes nothing", "Give it components of the kind `hinted` or `normal`."
        )
    return Finding(f"device {name}", "ok", ", ".join(_key(key, spec) for key, spec in keys.items()))


def _key(key: str, spec: Mapping[str, Any]) -> str:
    shape = " x ".join(map(str, spec.get("shape") or ()))
    parts = [shape, str(spec.get("units") or ""), "in a file" if spec.get("external") else ""]
    inside = ", ".join(part for part in parts if part)
    return f"{key} ({inside})" if inside else key


def _is_frame(spec: Mapping[str, Any]) -> bool:
    return len([side for side in spec.get("shape") or () if side != 1]) >= 2


def _keys(config: Config, described: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    """Check that frames, axes and monitor can be found among the keys."""
    keys = {key: spec for each in described.values() for key, spec in each.items()}
    documents = config.documents
    frames = [key for key, spec in keys.items() if _is_frame(spec)]
    if documents.frame_key is not None and documents.frame_key not in keys:
        known = ", ".join(frames) or "no device has frames"
        yield Finding(
            "frames", "fail", f"documents.frame_key {documents.frame_key} is no key", f"Take one of: {known}."
        )
    elif not frames:
        yield Finding("frames", "fail", "no device describes frames (two dimensions)", "Add the area detector.")
    elif len(frames) > 1 and documents.frame_key is None:
        yield Finding("frames", "warn", f"several: {', '.join(frames)}", "Name one in documents.frame_key.")
    else:
        yield Finding("frames", "ok", documents.frame_key or frames[0])
    axes = {key: spec for key, spec in keys.items() if _unit_of(config, spec, key) is not None and not _is_frame(spec)}
    wanted = documents.position_keys
    if wanted is not None and not set(wanted) <= set(axes):
        advice = "Name keys of two axes that state a length, or state documents.position_unit."
        yield Finding("axes", "fail", f"documents.position_keys {', '.join(wanted)}: not both are lengths", advice)
    elif len(axes) < 2:
        advice = "Set `egu` of both motors to a unit of length, or state documents.position_unit."
        yield Finding("axes", "fail", f"keys with a unit of length: {', '.join(axes) or 'none'}", advice)
    else:
        said = ", ".join(f"{key} in {axes[key].get('units') or documents.position_unit}" for key in wanted or axes)
        yield Finding("axes", "ok", said)
    if documents.monitor_key is None:
        yield Finding("flux monitor", "ok", "none configured (documents.monitor_key)")
    elif documents.monitor_key in keys:
        yield Finding("flux monitor", "ok", documents.monitor_key)
    else:
        advice = "Take a key from above, or leave documents.monitor_key out."
        yield Finding("flux monitor", "fail", f"{documents.monitor_key} is no key of any device", advice)


def _unit_of(config: Config, spec: Mapping[str, Any], key: str) -> float | None:
    unit = spec.get("units")
    if unit is None and key in (config.documents.position_keys or ()):
        unit = config.documents.position_unit
    try:
        return metres_per(unit, key)
    except DocumentError:
        return None


def _files(described: Mapping[str, Mapping[str, Any] | Exception]) -> Finding:
    """Tell whether frames come in files, and which folder they must be in."""
    known = [each for each in described.values() if isinstance(each, Mapping)]
    external = [key for keys in known for key, spec in keys.items() if spec.get("external")]
    if not external:
        return Finding("frame files", "ok", "frames come in the events")
    where = "the folder `frames` of catalog.directory (session.frames_directory)"
    return Finding("frame files", "ok", f"{', '.join(external)}: to be written below {where}; --frame tries it")


def _frame(session: Session, devices: Mapping[str, Any], described: Mapping[str, Any], figure: Path) -> Finding:
    """Take one frame, read it back through the catalog's server, and do to it what the configuration wants."""
    import numpy as np
    from bluesky.plans import count

    from bluesky_cdi.io import Preprocessing, inspect_frames
    from bluesky_cdi.viz import save_figure, show_detector

    wanted = session.config.documents.frame_key
    found = [
        (name, key)
        for name, keys in described.items()
        if isinstance(keys, Mapping)
        for key, spec in keys.items()
        if (key == wanted if wanted else _is_frame(spec))
    ]
    if not found:
        return Finding("test frame", "fail", "no detector to take it with", "See above.")
    name, key = found[0]
    try:
        uids: list[str] = []
        session.RE(count([devices[name]]), lambda kind, doc: uids.append(doc["uid"]) if kind == "start" else None)
        session.wait()
        raw = np.asarray(session.catalog.raw[uids[0]][session.config.documents.stream][key].read())
        frames = raw.reshape(-1, *raw.shape[-2:])
        seen = inspect_frames(frames)
        preprocessing = Preprocessing.live(session.config)
        parts: dict[str, Any] = {}
        if preprocessing is not None:
            plan = preprocessing.plan(frames.shape[1:], frames.dtype, frames=frames, mask=seen.valid)
            parts = {"result": plan.apply(seen.mean[None])[0], "result_mask": plan.mask}
        save_figure(show_detector(seen.mean, seen.valid, title=f"{name}: {key}", **parts), figure)
    except (BlueskyCDIError, OSError, ValueError, KeyError, RuntimeError) as err:
        advice = "The catalog's server must see the detector's file at the path that the detector states."
        return Finding("test frame", "fail", f"{type(err).__name__}: {err}", advice)
    height, width = frames.shape[1:]
    side = session.config.geometry.frame_px
    text = (
        f"{height} x {width}, {frames.dtype}, {seen.photons.sum():.4g} counts, highest {seen.highest.max():g}; {figure}"
    )
    if not parts and (height, width) != (side, side):
        advice = f"Set geometry.frame_px, or crop and bin in the section detector: {side} x {side} are configured."
        return Finding("test frame", "fail", text, advice)
    if seen.photons.sum() <= 0:
        return Finding("test frame", "warn", text, "No counts: is the shutter open?")
    return Finding("test frame", "ok", text)
