"""A session whose detector lies upside down: from the devices to the catalog, and from there once more."""

import numpy as np

from bluesky_cdi.callbacks import collect_frames
from bluesky_cdi.catalog import load_result, run_documents
from bluesky_cdi.io import Preprocessing
from bluesky_cdi.plans import ptycho_raster
from bluesky_cdi.resume import resume_run

SOON_S = 240.0


def test_a_detector_that_lies_upside_down(open_lab, make_config):
    settings = {"name": "rpie", "refine_iterations": 1, "final_steps": 0}
    config = make_config(reconstructor=settings, detector={"rotate_deg": 180, "mask_flagged": True})
    with open_lab(config) as lab:
        lab.run(ptycho_raster(*lab.devices, extent_um=(0.4, 0.6), step_um=0.2))
        lab.session.wait(SOON_S)
        catalog = lab.session.catalog
        run = catalog.raw[lab.docs.of("start")[0]["uid"]]
        _, raw = collect_frames(run_documents(catalog, run))
        info, turned = collect_frames(run_documents(catalog, run), preprocessing=Preprocessing.live(config))
        # About the middle pixel, so that the first row and column are beyond the detector.
        for before, after in zip(raw, turned, strict=True):
            np.testing.assert_array_equal(after.counts[1:, 1:], before.counts[:0:-1, :0:-1])
        notes, mask = dict(info.preprocessed.notes), info.preprocessed.mask
        # Hot pixels of the simulation read the largest number of their type.
        assert (
            not mask[0].any() and 0 < (~mask[1:, 1:]).sum() <= notes["flagged_pixels"] == config.simulation.hot_pixels
        )
        live = load_result(catalog, -1)
        assert live.n_frames == len(raw) == 12
        assert lab.derived.of("start")[0]["source"]["preprocessing"] == notes == live.source["preprocessing"]
        again = resume_run(catalog, run.start["uid"], config, lab.session.directory, anew=True, seconds=1.0)
        assert again.estimate.source["preprocessing"] == notes
        np.testing.assert_array_equal(again.estimate.frame_seq_nums, live.frame_seq_nums)
