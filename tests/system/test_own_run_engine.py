"""A session on a RunEngine that exists already: it works beside what is on it, and leaves nothing behind."""

import pytest

from bluesky_cdi.catalog import load_result
from bluesky_cdi.errors import ConfigError
from bluesky_cdi.plans import ptycho_raster
from bluesky_cdi.session import Session

RASTER = {"extent_um": (0.4, 0.6), "step_um": 0.2}


def test_two_sessions_one_after_the_other(open_lab, fast_config, run_engine, tmp_path):
    with run_engine() as engine:
        engine.md.update(beamline="26-ID", scan_id=41)
        own = engine.scan_id_source
        for number, claimed in ((42, False), (43, True)):
            with open_lab(fast_config, RE=engine, claim_scan_numbers=claimed) as lab:
                assert lab.session.RE is engine
                with pytest.raises(ConfigError, match="close it first"):
                    Session(fast_config, tmp_path, RE=engine)
                assert lab.run(ptycho_raster(*lab.devices, lab.session.live, **RASTER)) == "complete"
                # Straight after the scan: it is waited for, whatever names it.
                names = -1, number, lab.docs.of("start")[0]["uid"][:8]
                loaded = [load_result(lab.session.catalog, which) for which in names[: 3 if claimed else 1]]
                assert {estimate.n_frames for estimate in loaded} == {12}
                lab.session.wait()
                lab.check_raw_run("success", 12)
                assert lab.check_derived_run("success").scan_id == number
                (start,) = lab.docs.of("start")
                assert (start["scan_id"], start["beamline"], start["monitor"]) == (number, "26-ID", "i0")
                assert start["geometry"]["energy_ev"] == fast_config.geometry.energy_ev
                assert (lab.session.directory / "last_scan_number").exists() == claimed
            assert engine.md == {"versions": engine.md["versions"], "beamline": "26-ID", "scan_id": number}
            assert (engine.state, engine.scan_id_source, engine.preprocessors) == ("idle", own, [])
            # Only the lab's own subscription is left.
            assert len(engine.dispatcher._token_mapping) == 1
            engine.unsubscribe(*engine.dispatcher._token_mapping)
