"""The reconstruction's process of a session of another machine: that of `bluesky_cdi.remote.child`, on a host's terms.

Started by `bluesky_cdi.remote.host`, with the number of an open socket and its `Terms` as arguments.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bluesky_cdi.callbacks import SharedFolders
from bluesky_cdi.errors import BlueskyCDIError, HostError
from bluesky_cdi.live.parts import Recorder
from bluesky_cdi.protocols import RunInfo
from bluesky_cdi.remote.carried import put_down
from bluesky_cdi.remote.child import Channel, serve
from bluesky_cdi.remote.far import Asking, FarFiles, FarRecorder
from bluesky_cdi.remote.hosting import OUT_OF_MEMORY, Terms
from bluesky_cdi.remote.setup import LIVE, Setup, factory_of

logger = logging.getLogger("bluesky_cdi.remote.hosted")


def hosted_setup(terms: Terms, asking: Asking, factory: str, arguments: Mapping[str, Any]) -> Setup:
    """Make what the worker is made from, on a host's terms.

    Parameters
    ----------
    terms : Terms
        The host's.
    asking : Asking
        Asks the session's machine.
    factory : str
        That the session names.
    arguments : Mapping
        For it; with ``files``, what `carry` read.

    Raises
    ------
    HostError
        If the host does not run that factory.
    """
    if factory not in (LIVE, *terms.factories):
        raise HostError(
            f"the host runs no factory {factory!r}; who starts it may allow that: serve-reconstructor --factory "
            f"{factory}"
        )
    folder = Path(terms.folder)
    config = dict(arguments["config"])
    config["reconstructor"] = {**config["reconstructor"], "device": terms.device, "checkpoint_s": 0.0, "host": {}}
    put_down(config, arguments["files"], folder / "files")
    given = {**arguments, "config": config, "directory": str(folder)}
    del given["files"]
    made = factory_of(factory)(given)

    def recorder(info: RunInfo, uid: str) -> Recorder:
        return FarRecorder(info, uid, asking)

    parts = replace(made.parts, make_recorder=recorder, make_checkpoint=None)
    return replace(
        made,
        parts=parts,
        elsewhere=FarFiles(SharedFolders.of(terms.paths), asking),
    )


def setup_or_end(terms: Terms, asking: Asking, factory: str, arguments: Mapping[str, Any]) -> Setup:
    """Make what the worker is made from; end the process where this host won't, or its disk is full.

    Parameters
    ----------
    terms, asking, factory, arguments
        As for `hosted_setup`, which raises what would be the same on another host.
    """
    why: Exception
    try:
        return hosted_setup(terms, asking, factory, arguments)
    except HostError as err:
        why = err
    except BlueskyCDIError:
        raise
    except OSError as err:
        why = err
    # Another host, or this one later or started otherwise, may do.
    logger.error("the host can't begin a reconstruction: %s", why)
    os._exit(1)


def end_without_memory(error: Exception | None) -> None:
    """End the process if its device or machine has no memory left: a new one begins with all of it, and reads again.

    Parameters
    ----------
    error : Exception or None
        Why a reconstruction failed.
    """
    seen: BaseException | None = error
    while seen is not None:
        # PyTorch's own is no MemoryError.
        if isinstance(seen, MemoryError) or type(seen).__name__ == "OutOfMemoryError":
            os._exit(OUT_OF_MEMORY)
        seen = seen.__cause__


def main() -> None:
    """Serve the session at the other end of the socket that the first argument numbers."""
    terms = Terms(**json.loads(sys.argv[2]))
    asking: list[Asking] = []

    def make(channel: Channel, factory: str, arguments: Mapping[str, Any]) -> Setup:
        asking.append(Asking(channel.send))
        return setup_or_end(terms, asking[0], factory, arguments)

    serve(int(sys.argv[1]), make, lambda *answer: asking[0].told(*answer), end_without_memory)


if __name__ == "__main__":
    main()
