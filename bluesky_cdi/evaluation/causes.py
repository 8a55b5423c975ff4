"""The causes of misfit that a reconstruction has named, as its estimates carry them.

``source["causes"]`` is a list, empty when nothing is wrong. Each has plain values: ``cause`` (a word), ``says`` (a
sentence with its figure, and what to do), ``frames`` (the numbers of the first and the last frame that show it, or None
for all), ``share`` of the frames that were looked at, and ``goes_on``: whether the newest frames show it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

KEY = "causes"
# A cause that at most this share of the frames show says little of the image.
FEW = 0.1


def causes_of(source: Mapping[str, Any], *, few: bool | None = None, besides: Collection[str] = ()) -> Iterator[str]:
    """Say which causes were named, and of which frames.

    Parameters
    ----------
    source : Mapping
        Of an estimate.
    few : bool, optional
        Only those that few frames show (`FEW`), or only the others; all if absent.
    besides : collection of str
        Words of those that are left out.
    """
    for each in source.get(KEY, ()):
        if each["cause"] in besides or (few is not None and few != (each["share"] <= FEW)):
            continue
        frames = each["frames"]
        where = "" if frames is None else f"frames {frames[0]} to {frames[1]}: "
        if frames is not None and frames[0] == frames[1]:
            where = f"frame {frames[0]}: "
        yield f"{where}{each['cause']}: {each['says']}"
