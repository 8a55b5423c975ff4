"""What is looked at beside the image: nothing of it ends a run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)


class Beside:
    """Does what the image of a run does not need; what fails once is told, and left out of the rest of the run."""

    def __init__(self) -> None:
        self._left_out: set[str] = set()

    def do(self, what: str, look: Callable[..., None], *args: Any) -> None:
        """Look, unless that has failed before.

        Parameters
        ----------
        what : str
            Name of the look.
        look : callable
            Does it.
        *args
            What it takes.
        """
        if what in self._left_out:
            return
        try:
            look(*args)
        except Exception as err:
            self._left_out.add(what)
            logger.exception("the look for %s failed and is left out from now on: %s (the image goes on)", what, err)
