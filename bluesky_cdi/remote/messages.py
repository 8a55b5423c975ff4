"""What goes over the channel between a session and its reconstruction's process.

Each message is a list, packed by `bluesky_cdi.packing`: a name, then what the table says. Nothing in it can run code,
so the two ends may be on different machines.

========== ==================================== ==============================================================
from       message                              meaning
========== ==================================== ==============================================================
session    setup, factory, arguments            first of all: what the worker is made of
session    document, record                     a packed [name, document] of the raw run
session    begin, number, area, uid             `ScanSource.begin`; the uid of its derived run
session    request, number, n, after            `ScanSource.request`
session    points_after, number, after          `LiveWorker.points_after`
session    wait, number, seconds                tell when the newest run is reconstructed
session    look, number, after                  tell what frames show by themselves, once that is newer than a number
session    want                                 send estimates from now on
session    taken                                the estimate has arrived: another may be sent
session    close                                finish what is under way, and end
worker     ready                                the worker is made
worker     failed, text                         it can't be made
worker     beat, begun, error, left out, done   alive; scans begun, and the error of the newest run; documents
                                                that are done with, or -1
worker     activity, silence                    what it is at if it gives no sign of life for longer than usual
worker     answer, number, value                of begin, request, points_after, wait, look
worker     refused, number, text                of begin, request, points_after, wait, look
worker     estimate, fields                     the newest
worker     progress, frames                     so many frames are in a new image
worker     log, logger, level, text, traceback  a record of the package's log
========== ==================================== ==============================================================

Where the worker is on another machine (`bluesky_cdi.remote.host`), a process of the session's machine stands between
the two, `bluesky_cdi.remote.relay`. It keeps the results and reads the files, and hands on all else:

========== ==================================== ==============================================================
worker     ask, number, rows, resource, start,  rows of a file that the worker can't open
           stop, part
worker     ask, number, record, uid, run        a run's results come
worker     ask, number, publish, uid, fields    the estimate is to be kept
worker     ask, number, end, uid, fields,       the last one of the run
           status, reason
relay      told, number, error, value           what came of it
relay      moves                                to the session: something comes, of which none may be whole for long
relay      ended, text                          to the session: how the process ended, or the host was lost
========== ==================================== ==============================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bluesky_cdi.callbacks import Part
from bluesky_cdi.live_view.sight import Sight
from bluesky_cdi.protocols import Estimate, Proposal, RunInfo, ScanArea, ScanTicket

Points = Sequence[Mapping[str, Any]]

# Time between two signs of life.
BEAT_S = 0.5


def pack_area(area: ScanArea) -> list[Any]:
    """Give what `unpack_area` makes an area from."""
    return [area.low_m, area.high_m, area.step_m, area.budget, area.adaptive, area.keep_out_m]


def unpack_area(values: list[Any]) -> ScanArea:
    """Make an area from what came."""
    low, high, step, budget, adaptive, boxes = values
    keep_out = tuple(((a[0], a[1]), (b[0], b[1])) for a, b in boxes)
    return ScanArea((low[0], low[1]), (high[0], high[1]), step, budget, adaptive, keep_out)


def pack_answer(value: ScanTicket | Proposal | Sight | Points | None) -> dict[str, Any] | list[Any] | None:
    """Give what `unpack_answer` makes an answer from."""
    if value is None or isinstance(value, Sequence):
        return None if value is None else list(value)
    return vars(value)


def unpack_answer(fields: Mapping[str, Any] | Points | None) -> ScanTicket | Proposal | Sight | Points | None:
    """Make an answer from what came."""
    if not isinstance(fields, Mapping):
        return fields
    if "rate_hz" in fields:
        return Sight(**fields)
    return ScanTicket(**fields) if "reconstruction_uid" in fields else Proposal(**fields)


def pack_estimate(estimate: Estimate) -> dict[str, Any]:
    """Give what `unpack_estimate` makes an estimate from."""
    return vars(estimate)


def unpack_estimate(fields: Mapping[str, Any]) -> Estimate:
    """Make an estimate from what came; its arrays are its own."""
    own: dict[str, Any] = {
        name: np.array(value) if isinstance(value, np.ndarray) else value for name, value in fields.items()
    }
    own["origin_m"] = tuple(own["origin_m"])
    return Estimate(**own)


def pack_run(info: RunInfo) -> dict[str, Any]:
    """Give what `unpack_run` makes a run from: what those need who keep its results."""
    return {key: getattr(info, key) for key in ("uid", "scan_id", "metadata", "frame_shape", "window_m", "grows")}


def unpack_run(fields: Mapping[str, Any]) -> RunInfo:
    """Make a run from what came."""
    window = fields["window_m"]
    corners = None if window is None else ((window[0][0], window[0][1]), (window[1][0], window[1][1]))
    return RunInfo(**{**fields, "frame_shape": tuple(fields["frame_shape"]), "window_m": corners})


def pack_part(part: Part | None) -> list[Any] | None:
    """Give what `unpack_part` makes a part of frames from."""
    return None if part is None else [[[each.start, each.stop] for each in part.region], part.shape]


def unpack_part(values: Sequence[Any] | None) -> Part | None:
    """Make a part of frames from what came."""
    if values is None:
        return None
    rows, columns = (slice(*each) for each in values[0])
    return Part((rows, columns), (values[1][0], values[1][1]))
