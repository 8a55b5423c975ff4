"""Masked arrays on their way into a catalog that has none, and back: what is masked was not measured.

Tiled's arrays and tables hold no masks. Values that can be NaN (or NaT) are, where they are masked; beside others, such
as the integers of a detector, their stream gets a data key with the mask (`frame_mask` beside `frame`), whose source
names them.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

SOURCE = "numpy.ma:"


def mask_keys(descriptor: Mapping[str, Any]) -> dict[str, str]:
    """Find the data keys of a descriptor that hold masks, by the data keys that they belong to.

    Parameters
    ----------
    descriptor : Mapping
        Its document.
    """
    sources = {key: str(announced.get("source")) for key, announced in descriptor.get("data_keys", {}).items()}
    return {source.removeprefix(SOURCE): key for key, source in sources.items() if source.startswith(SOURCE)}


def with_masks(data: Mapping[str, Any], masks: Mapping[str, str]) -> dict[str, Any]:
    """Join an event's values with the masks beside them.

    Parameters
    ----------
    data : Mapping
        Of an event of the catalog.
    masks : Mapping
        As `mask_keys` gives them.
    """
    joined = {key: value for key, value in data.items() if key not in masks.values()}
    return joined | {
        key: np.ma.array(data[key], mask=data[mask]) for key, mask in masks.items() if key in data and mask in data
    }


class Masks:
    """Makes documents without masked arrays from those of one run.

    Which masks have to be kept beside is seen in events only, after their descriptors: a run is then written anew.
    """

    def __init__(self) -> None:
        # Data keys whose masks are kept beside, by the name of the stream.
        self._beside: dict[str, set[str]] = defaultdict(set)

    def describe(self, descriptor: Mapping[str, Any]) -> dict[str, Any]:
        """Announce the masks that are known to be kept beside.

        Parameters
        ----------
        descriptor : Mapping
            The document, as it was written.
        """
        keys = dict(descriptor["data_keys"])
        for key in sorted(self._beside[descriptor["name"]] & keys.keys()):
            mask = f"{key}_mask"
            while mask in keys:
                mask += "_"
            shape = keys[key].get("shape") or []
            kind = "array" if shape else "boolean"
            keys[mask] = {"source": f"{SOURCE}{key}", "dtype": kind, "dtype_numpy": "|b1", "shape": shape}
        return {**descriptor, "data_keys": keys}

    def learn(self, event: Mapping[str, Any], descriptor: Mapping[str, Any]) -> bool:
        """Look for masks that must be kept beside; True: `describe` did not know of them.

        Parameters
        ----------
        event : Mapping
            An event or a page of events.
        descriptor : Mapping
            As `describe` gave it.
        """
        beside = self._beside[descriptor["name"]]
        found = {key for key in event["data"] if np.any(_each(event, key, _needs_mask, descriptor))}
        is_new = bool(found - beside)
        beside |= found
        return is_new

    def plain(self, event: Mapping[str, Any], descriptor: Mapping[str, Any]) -> dict[str, Any]:
        """Give an event without masked arrays.

        Parameters
        ----------
        event : Mapping
            An event or a page of events.
        descriptor : Mapping
            As `describe` gave it.
        """
        masks = {mask: key for key, mask in mask_keys(descriptor).items() if key in event["data"]}
        data = {key: _each(event, key, _unmasked, descriptor) for key in event["data"]}
        data |= {mask: _each(event, key, _mask_of, descriptor) for mask, key in masks.items()}
        times = event["timestamps"]
        return {**event, "data": data, "timestamps": {**times, **{mask: times[key] for mask, key in masks.items()}}}


def as_lists(value: Any) -> Any:
    """Give masked arrays in metadata as lists, with None for what is masked.

    Parameters
    ----------
    value : object
        A document, or what it holds.
    """
    if isinstance(value, np.ma.MaskedArray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: as_lists(each) for key, each in value.items()}
    return [as_lists(each) for each in value] if isinstance(value, list) else value


def _each(event: Mapping[str, Any], key: str, look: Callable[..., Any], descriptor: Mapping[str, Any]) -> Any:
    """Look at the value of an event with its announcement; in a page that lists values, at each of them."""
    value, announced = event["data"][key], descriptor["data_keys"].get(key, {})
    if isinstance(value, list) and np.ndim(event["seq_num"]):
        return [look(each, announced) for each in value]
    return look(value, announced)


def _needs_mask(value: Any, announced: Mapping[str, Any]) -> bool:
    """Tell whether a value has masked elements that can't be NaN where it is kept."""
    if not isinstance(value, np.ma.MaskedArray) or not np.ma.is_masked(value):
        return False
    kinds = {value.dtype.kind}
    with contextlib.suppress(TypeError):  # stated as no type of NumPy's
        kinds.add(np.dtype(announced.get("dtype_numpy") or value.dtype).kind)
    return not kinds <= set("fcmM") or announced.get("dtype") in ("integer", "boolean")


def _unmasked(value: Any, announced: Mapping[str, Any]) -> Any:
    """Give what a masked array holds, NaN where that can stand for what is masked; single values as Python's."""
    if not isinstance(value, np.ma.MaskedArray):
        return value
    plain = np.asarray(value.data)
    if np.ma.is_masked(value) and not _needs_mask(value, announced):
        none = np.array("NaT" if plain.dtype.kind in "mM" else np.nan, plain.dtype)
        plain = np.where(np.ma.getmaskarray(value), none, plain)
    if plain.ndim:
        return plain
    # The constant `numpy.ma.masked` is a float, whatever it was taken from.
    return int(plain) if announced.get("dtype") == "integer" else plain.item()


def _mask_of(value: Any, _: Mapping[str, Any]) -> Any:
    """Give the mask of any value, True where it is masked."""
    mask = np.ma.getmaskarray(np.asanyarray(value))
    return mask if mask.ndim else bool(mask)
