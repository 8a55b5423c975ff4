"""A recorder that also puts the probe of a run that ended well into the library."""

from __future__ import annotations

import logging
from typing import Any

from bluesky_cdi.config import Config
from bluesky_cdi.errors import BlueskyCDIError
from bluesky_cdi.io import ProbeFile
from bluesky_cdi.live.parts import Recorder
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.protocols import Estimate, RunInfo
from bluesky_cdi.reconstruction.probe_library import DEFOCUS, is_sure, keep

logger = logging.getLogger(__name__)


class ProbeKeeper:
    """Hands estimates on to a recorder, and keeps the probe of a run that ended well in a library.

    Parameters
    ----------
    recorder : Recorder
        Gets all first.
    info : RunInfo
        The run.
    config : Config
        Its section `probe` names the library.
    """

    def __init__(self, recorder: Recorder, info: RunInfo, config: Config) -> None:
        self._recorder, self._info, self._config = recorder, info, config

    def publish(self, estimate: Estimate) -> None:
        """Hand an update on."""
        self._recorder.publish(estimate)

    def close(self, estimate: Estimate | None, exit_status: Any, reason: str) -> None:
        """Hand the final estimate on, and keep its probe if that is good and sure."""
        self._recorder.close(estimate, exit_status, reason)
        if self._config.probe.library is None or estimate is None or exit_status != "success" or not is_sure(estimate):
            return
        geometry = Geometry.from_metadata(self._info.metadata, self._info.frame_shape)
        source = {**estimate.source, DEFOCUS: self._config.probe.defocus_m}
        try:
            path = keep(
                self._config.probe.library, ProbeFile(estimate.probe, geometry, f"run {self._info.uid}", source)
            )
        except (BlueskyCDIError, OSError) as err:
            logger.exception("the probe of run %s is not kept in the library: %s", self._info.scan_id, err)
            return
        logger.info("the probe of run %s is in the library: %s", self._info.scan_id, path)
