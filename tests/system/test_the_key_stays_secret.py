"""The catalog's key in nothing that a session says: no log, no message, no name of a process."""

import logging
import re
import traceback
from pathlib import Path

import pytest

from bluesky_cdi.catalog import open_catalog, serve
from bluesky_cdi.config import Config, load_config
from bluesky_cdi.errors import CatalogError, ConfigError

KEY = "5ec2e75ec2e75ec2e7"


@pytest.fixture
def said(caplog, capfd):
    """Everything that is logged at any level, and written to standard output and error, so far."""
    caplog.set_level(logging.DEBUG)
    for name in ("httpx", "httpcore", "uvicorn", "tiled", "bluesky", "asyncio", "sqlalchemy", "bluesky_cdi"):
        caplog.set_level(logging.DEBUG, logger=name)

    def everything():
        records = [f"{each.getMessage()} {each.exc_text or ''}" for each in caplog.records]
        return "\n".join([*records, *capfd.readouterr()])

    return everything


def test_a_whole_session_does_not_say_it(open_lab, make_config, said):
    config = make_config(
        catalog={"api_key": KEY}, reconstructor={"name": "rpie", "refine_iterations": 1, "final_steps": 0}
    )
    with open_lab(config) as lab:
        lab.run(lab.adaptive(budget=8))
        lab.session.wait(240)
        with pytest.raises(CatalogError) as refused:
            open_catalog(lab.session.uri.replace(KEY, "0" + KEY))
        command = Path("/proc/self/cmdline").read_bytes().decode()
    text = said()
    assert "HTTP Request" in text or "http" in text  # it is not silent
    assert KEY not in text
    assert KEY not in "".join(traceback.format_exception(refused.value)) + command + repr(config) + str(config)


@pytest.mark.parametrize(
    "uri",
    [
        f"http://127.0.0.1:1/api/v1?api_key={KEY}",
        f"127.0.0.1:1?api_key={KEY}",
        f"http://127.0.0.1:x?api_key={KEY}",
        f"http://[::1?api_key={KEY}",
        f"nonsense api_key={KEY}",
    ],
)
def test_errors_do_not_say_it(uri, said):
    with pytest.raises(CatalogError) as refused:
        open_catalog(uri)
    assert KEY not in str(refused.value) + said()


@pytest.mark.parametrize(
    "content",
    [
        f"catalog: {{api_kex: {KEY}}}",
        f"catalogue: {{api_key: {KEY}}}",
        f"catalog: {{api_key: [{KEY}]}}",
        f"catalog: [{KEY}]",
        f"catalog: {{api_key: {KEY}}}\nscan: {{budget: 1, batch: 2}}",
        f"catalog:\n  api_key: '{KEY}",
        f"catalog:\n  api_key: {KEY}: 3",
    ],
)
def test_a_bad_configuration_does_not_say_it(tmp_path, content):
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(ConfigError, match=re.escape(str(tmp_path / "a.yaml"))) as refused:
        load_config([tmp_path / "a.yaml"])
    assert KEY not in "".join(traceback.format_exception(refused.value))


def test_a_key_that_can_not_be_used_is_not_said(tmp_path):
    with pytest.raises(CatalogError) as refused, serve(tmp_path, api_key=KEY + "?"):
        pass
    assert KEY not in str(refused.value)
    assert KEY not in repr(Config.model_validate({"catalog": {"uri": f"http://a/?api_key={KEY}"}}))
