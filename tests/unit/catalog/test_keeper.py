"""The catalog's process, seen from the session, with stand-ins for the process."""

import os
import sys

import pytest

from bluesky_cdi.catalog import keeper
from bluesky_cdi.errors import CatalogError


@pytest.mark.parametrize("said", [b"Python 3 with extras", b"[1]", b"\xe9t\xe9"])
def test_what_is_no_answer_is_told_to_who_waits_for_the_address(tmp_path, monkeypatch, said):
    """Else a session would wait for it for ever."""
    popen = keeper.subprocess.Popen
    code = f"import os, sys; os.write(1, {said + os.linesep.encode()}); sys.stdin.read()"
    monkeypatch.setattr(keeper.subprocess, "Popen", lambda _, **how: popen([sys.executable, "-c", code], **how))
    with keeper.Keeper(tmp_path) as started, pytest.raises(CatalogError, match=r"it said .*sitecustomize"):
        assert started._address.result(120.0)
