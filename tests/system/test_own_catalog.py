"""A session on a Tiled server of one's own: what the embedded catalog holds, that holds."""

import contextlib
import shutil

import pytest

from bluesky_cdi.catalog import load_result, serve
from bluesky_cdi.errors import CatalogError
from bluesky_cdi.plans import ptycho_raster
from bluesky_cdi.session import Session


@pytest.fixture
def client(empty_catalog, tmp_path):
    """A container of a server that is not the session's."""
    from tiled.client import from_uri

    # As a beamline's server: it may read what its sessions write.
    readable = [tmp_path.parent]
    with serve(shutil.copytree(empty_catalog, tmp_path / "catalog"), readable=readable) as uri:
        root = from_uri(uri)
        with contextlib.closing(root.context):
            yield root.create_container("beamline")


def test_runs_and_images_are_written_to_the_clients_container(client, open_lab, fast_config):
    with open_lab(fast_config, catalog=client) as lab:
        lab.run(ptycho_raster(*lab.devices, lab.session.live, extent_um=(0.4, 0.6), step_um=0.2))
        lab.session.wait()
        (uid,) = (doc["uid"] for doc in lab.docs.of("start"))
        lab.check_raw_run("success", 12)
        lab.check_derived_run("success")
        assert load_result(lab.session.catalog, -1).n_frames == 12
    assert list(client["raw"]) == [uid] and len(client["processed"]) == 1


def test_clients_that_no_other_process_can_use_are_refused(fast_config, tmp_path):
    with pytest.raises(CatalogError, match=r"as tiled.client.from_uri gives; got 'http"):
        Session(fast_config, tmp_path, catalog="http://localhost:8000")
