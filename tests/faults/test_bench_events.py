"""What `bench events` measures of a session while its other processes are disturbed."""

import json

from bluesky_cdi.cli import main


def test_every_event_is_counted_and_the_scan_is_not_held_up(capsys):
    assert main(["bench", "events", "--events", "50", "--rounds", "2", "--json", "-q"]) == 0
    found = json.loads(capsys.readouterr().out)
    n = found["settings"]["raster"]
    assert n == 25
    for row in (found["rows"]["session"], *found["disturbed"].values()):
        assert set(row["in_catalog"]) == set(row["reconstructed"]) == {n}
    assert len(found["disturbed"]) == 3
    assert [len(each) for each in found["rows"]["session"]["resident_mib"]] == [3, 3]
    assert found["rows"]["bare"]["mean_ms"] > 0
