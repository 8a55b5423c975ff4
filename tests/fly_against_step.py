"""Images of fly scans against that of a step scan at the same positions, of the simulated beamline, live in a session.

``python tests/fly_against_step.py [FOLDER]`` prints a line a scan; some minutes. All frames have the same photons.
"""

import logging
import sys
import tempfile
import time
from pathlib import Path

from bluesky_cdi.catalog import load_result
from bluesky_cdi.config import Config
from bluesky_cdi.evaluation import compare_estimate
from bluesky_cdi.plans import ptycho_fly, ptycho_raster
from bluesky_cdi.session import Session
from bluesky_cdi.sim_devices import simulated_beamline

RATE_HZ = 50.0
# Name, and exposure in seconds.
SCANS = [("step scan", 0.002), *(("fly scan", exposure_s) for exposure_s in (0.002, 0.006, 0.012, 0.018))]


def run(name, exposure_s, folder):
    config = Config.model_validate({"scan": {"exposure_s": exposure_s}, "reconstructor": {"final_budget_s": 30.0}})
    images = []
    with Session(
        config, folder, monitor_key="i0", listeners=[lambda e: images.append((time.monotonic(), e.n_frames))]
    ) as session:
        line = simulated_beamline(config, session.frames_directory)
        window = {"extent_um": config.scan.extent_um, "step_um": config.scan.step_um, "shutter": line.shutter}
        axes = (line.stage.y, line.stage.x)
        began = time.monotonic()
        if name.startswith("step"):
            session.RE(ptycho_raster([line.detector, line.monitor], *axes, session.live, **window))
        else:
            plan = ptycho_fly(
                [line.detector], *axes, line.scanner, session.live, rate_hz=RATE_HZ, exposure_s=exposure_s, **window
            )
            session.RE(plan)
        ended = time.monotonic()
        session.wait(600)
        estimate = load_result(session.catalog, -1)
    found = compare_estimate(estimate, line.truth.object, line.truth.origin_m).numbers
    meanwhile = max((n for at, n in images if at < ended), default=0)
    print(
        f"{name}: {estimate.n_frames} frames of {exposure_s * 1e3:g} ms in {ended - began:.1f} s, {meanwhile} of them "
        f"imaged meanwhile; complex NRMSE {found['complex_nrmse']:.3f}, phase MAE {found['phase_mae_rad']:.4f} rad",
        flush=True,
    )


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else temporary)
        for number, (name, exposure_s) in enumerate(SCANS):
            run(name, exposure_s, folder / str(number))
