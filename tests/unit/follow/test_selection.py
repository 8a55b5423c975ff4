"""Which runs are taken."""

import pytest

from bluesky_cdi.errors import ConfigError
from bluesky_cdi.follow import Selection


def test_what_the_start_document_must_say():
    chosen = Selection.parse(["instrument=ptycho", "instrument=26", "sample.name=gold"])
    assert chosen.why_not({"uid": "a", "instrument": 26, "sample": {"name": "gold"}}) == ""
    assert chosen.why_not({"uid": "a", "instrument": "ptycho", "sample.name": "gold"}) == ""
    assert "instrument is xrf, and ptycho or 26 is wanted" in chosen.why_not({"uid": "a", "instrument": "xrf"})
    assert "sample.name is not stated" in chosen.why_not({"uid": "a", "instrument": "ptycho", "sample": "gold"})


@pytest.mark.parametrize("n", [1, 2, 5])
def test_every_run_is_taken_by_one_of_the_followers_that_share_them(n):
    shares = [Selection.parse(share=f"{k + 1}/{n}") for k in range(n)]
    taken = [[not share.why_not({"uid": f"run-{k}"}) for share in shares] for k in range(200)]
    assert all(sum(each) == 1 for each in taken)
    assert all(sum(by) > 200 / n / 2 for by in zip(*taken, strict=True))


@pytest.mark.parametrize("share", ["0/2", "3/2", "1", "a/b", "1/2/3", ""])
def test_shares_that_are_none(share):
    with pytest.raises(ConfigError, match="a share is K/N"):
        Selection.parse(share=share)


def test_pairs_that_are_none():
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        Selection.parse(["instrument"])
