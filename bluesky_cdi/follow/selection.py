"""Which of the runs that are published a follower takes."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bluesky_cdi.errors import ConfigError


@dataclass(frozen=True)
class Selection:
    """Tells which runs are this follower's, from their start documents.

    Attributes
    ----------
    only : tuple of tuple of str
        Keys of the start document and the values that they must have, as text. Of one key any of its values will do.
        Keys of mappings in it are joined by dots.
    share : tuple of int
        (k, n): the k-th, from 1, of n followers that take every run between them.
    """

    only: tuple[tuple[str, str], ...] = ()
    share: tuple[int, int] = (1, 1)

    @classmethod
    def parse(cls, only: Sequence[str] = (), share: str = "1/1") -> Selection:
        """Read what a command line says.

        Parameters
        ----------
        only : sequence of str
            ``KEY=VALUE``.
        share : str
            ``K/N``.

        Raises
        ------
        ConfigError
            If it is of another form.
        """
        pairs = []
        for text in only:
            key, equals, value = text.partition("=")
            if not key or not equals:
                raise ConfigError(f"what a start document must say is KEY=VALUE, instrument=ptycho; got {text!r}")
            pairs.append((key, value))
        k, _, n = share.partition("/")
        if not (k.isdigit() and n.isdigit() and 1 <= int(k) <= int(n)):
            raise ConfigError(f"a share is K/N, with K from 1 to N: 2/3 is the second of three; got {share!r}")
        return cls(tuple(pairs), (int(k), int(n)))

    def why_not(self, start: Mapping[str, Any]) -> str:
        """Say why a run is not this follower's; empty where it is.

        Parameters
        ----------
        start : Mapping
            Its start document.
        """
        for key in dict.fromkeys(key for key, _ in self.only):
            wanted = [value for name, value in self.only if name == key]
            if (found := _text_at(start, key)) not in wanted:
                return f"its {key} is {found or 'not stated'}, and {' or '.join(wanted)} is wanted"
        k, n = self.share
        if zlib.crc32(str(start["uid"]).encode()) % n != k - 1:
            return f"another one of the {n} followers takes it"
        return ""


def _text_at(start: Mapping[str, Any], key: str) -> str:
    if key in start:
        return str(start[key])
    value: Any = start
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return ""
        value = value[part]
    return str(value)
