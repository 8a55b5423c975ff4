"""Iterative reconstruction engines, one algorithm a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bluesky_cdi.engines.ptychography import Engine

PTYCHOGRAPHY = ("epie", "rpie", "dm", "raar", "lsqml")


def make_engine(name: str, seed: int = 0, batch: int | None = None) -> Engine:
    """Make a ptychography engine with its usual settings.

    Parameters
    ----------
    name : {'epie', 'rpie', 'dm', 'raar', 'lsqml'}
        The algorithm.
    seed : int
        Seed of the order of frames.
    batch : int, optional
        Frames a mini-batch, for `rpie` and `lsqml`; the engine's own choice if absent.

    Raises
    ------
    ConfigError
        If the name is not known.
    """
    from bluesky_cdi.engines.difference_map import DifferenceMap
    from bluesky_cdi.engines.lsqml import Lsqml, LsqmlSettings
    from bluesky_cdi.engines.raar import Raar
    from bluesky_cdi.engines.rpie import EPIE, Rpie, RpieSettings
    from bluesky_cdi.errors import ConfigError

    if name == "rpie":
        return Rpie(RpieSettings() if batch is None else RpieSettings(batch=batch), seed)
    if name == "lsqml":
        return Lsqml(LsqmlSettings(batch=batch), seed)
    if name == "epie":
        return Rpie(EPIE, seed)
    if name == "dm":
        return DifferenceMap()
    if name == "raar":
        return Raar()
    raise ConfigError(f"an engine is one of {', '.join(PTYCHOGRAPHY)}; got {name!r}")
