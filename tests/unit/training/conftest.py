"""Two processes that train together."""

import contextlib

import pytest


@pytest.fixture
def fork_two(fork_script):
    """Run a script in two processes that find each other as torchrun's do; the exit code, and what they said."""
    import torch

    def run(script, *arguments):
        store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        with contextlib.ExitStack() as left:
            started = []
            for rank in "01":
                options = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", **where}
                started.append(left.enter_context(fork_script(script, *arguments, **options)))
                left.callback(started[-1].kill)
            codes = [each.wait() for each in started]
        return max(codes, key=abs), script.with_name(f"{script.name}.out").read_text()

    return run
