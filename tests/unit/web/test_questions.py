"""Questions to a catalog that fails, or goes while it is asked."""

import asyncio
import subprocess
import sys
import threading
from types import SimpleNamespace

import httpx
import pytest

from bluesky_cdi.config import load_config
from bluesky_cdi.errors import CatalogError
from bluesky_cdi.web.questions import Questions

FOREVER_S = 240.0


def test_serve_repeats_what_the_server_fails_on_a_few_times_only():
    """For 45 s otherwise, which is how long a page would wait."""
    code = (
        "from bluesky_cdi.cli.serve import _repeat_less; _repeat_less()\n"
        "import tiled.client.utils as utils; print(utils.TILED_RETRY_ATTEMPTS)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=FOREVER_S, check=True)
    assert done.stdout.split() == ["3"]


def test_a_question_whose_connection_another_one_closed_is_answered_as_one_of_a_catalog_that_is_gone():
    catalogs = [SimpleNamespace(raw=None, processed=None, close=lambda: closed.set()) for _ in range(2)]
    closed, asked = threading.Event(), threading.Event()
    questions = Questions(iter(catalogs).__next__, load_config())

    def finds_it_gone(_):
        assert asked.wait(FOREVER_S)
        raise CatalogError("gone") from httpx.ConnectError("refused")

    def is_under_way(_):
        asked.set()
        assert closed.wait(FOREVER_S)
        raise RuntimeError("Cannot send a request, as the client has been closed.")

    def fails(_):
        raise RuntimeError("something else")

    async def both():
        return await asyncio.gather(
            questions.ask(finds_it_gone), questions.ask(is_under_way), return_exceptions=True
        )  # fmt: skip

    first, second = asyncio.run(both())
    assert isinstance(first, CatalogError) and isinstance(second, CatalogError)
    assert "looked for again" in str(second)
    with pytest.raises(RuntimeError, match="something else"):
        asyncio.run(questions.ask(fails))
    questions.close()
