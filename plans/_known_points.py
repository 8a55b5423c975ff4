"""A scan of points that are known before it begins, whatever takes them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bluesky_cdi.plans._beside import Beside
from bluesky_cdi.plans._measure import Instrument, as_run, run_metadata
from bluesky_cdi.plans._plan import Plan
from bluesky_cdi.protocols import FloatArray, ScanArea


@dataclass(frozen=True, eq=False)
class KnownPoints:
    """Measures points, one run, beside the live reconstruction where there is one.

    Attributes
    ----------
    name : str
        The plan's.
    instrument : Instrument
        Its devices.
    beside : Beside or None
        The reconstruction.
    area : ScanArea
        The window.
    points_m : ndarray, shape (n, 2)
        (y, x), metres.
    args : Mapping
        The plan's arguments but for the devices.
    md : Mapping or None
        Metadata; what the user gives wins.
    others : sequence of Stageable
        Devices that are staged beside the detectors.
    """

    name: str
    instrument: Instrument
    beside: Beside | None
    area: ScanArea
    points_m: FloatArray
    args: Mapping[str, Any]
    md: Mapping[str, Any] | None
    others: Sequence[Any] = ()

    def measured(self, parts: Iterable[Plan[Any]]) -> Plan[str]:
        """Do the parts of the scan one after the other, and look between them whether the reconstruction is well.

        Parameters
        ----------
        parts : iterable of generator
            Plans that together measure the points; each is made when it is due.

        Returns
        -------
        str
            ``"complete"``.

        Raises
        ------
        WorkerError
            If the reconstruction has failed and that is to end the scan.
        """
        yield from self.instrument.check(self.points_m)
        area = replace(self.area, budget=len(self.points_m))
        md = {"num_points": len(self.points_m), **(self.md or {})}
        metadata = run_metadata(self.name, self.instrument, area, self.args, md)
        if self.beside is not None:
            metadata |= yield from self.beside.announced(area)
        return (yield from as_run(self.instrument, self._one_by_one(parts), metadata, self.others))

    def _one_by_one(self, parts: Iterable[Plan[Any]]) -> Plan[str]:
        for part in parts:
            if self.beside is not None:
                yield from self.beside.is_well()
            yield from part
        return "complete"
