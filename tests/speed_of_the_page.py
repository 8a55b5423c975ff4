"""How soon the page answers where there are many runs: ``python tests/speed_of_the_page.py SESSION FOLDER``.

The catalog of SESSION (such as ``demo_output``) is copied to FOLDER, unless that is there, and the metadata of its
newest run and result are written 1,000 times, with a thumbnail of 10 kB each. Then the copy is served with its page,
and asked as a browser asks. Each line tells seconds that passed, and the processor's, of server, page and asker
together: on a machine that is busy with something else the first are longer. The result that is looked at is SESSION's.
"""

import base64
import contextlib
import copy
import os
import shutil
import sys
import time
import uuid
from pathlib import Path

import httpx
from tiled.structures.core import Spec

from bluesky_cdi.catalog import find_raw, find_result, open_catalog, serve
from bluesky_cdi.config import load_config
from bluesky_cdi.web import Page
from bluesky_cdi.web.reader import Reader

RUNS, THUMBNAIL_BYTES, KEY = 1000, 10_000, "Key1"


def multiply(catalog):
    """Write the metadata of the newest run and of its result so many times."""
    runs = find_raw(catalog, -1), find_result(catalog, -1)
    specs = [[Spec(spec.name, spec.version) for spec in run.specs] for run in runs]
    for number in range(RUNS):
        raw, derived = (copy.deepcopy(dict(run.metadata)) for run in runs)
        uids = [str(uuid.uuid4()) for _ in runs]
        for metadata, uid in zip((raw, derived), uids, strict=True):
            metadata["start"] |= {"uid": uid, "scan_id": number + 2, "time": metadata["start"]["time"] - 60 * number}
            metadata["stop"]["run_start"] = uid
        derived["start"]["raw_uid"] = uids[0]
        derived["stop"]["thumbnail"] = base64.b64encode(os.urandom(THUMBNAIL_BYTES)).decode()
        for where, uid, metadata, each in zip(
            (catalog.raw, catalog.processed), uids, (raw, derived), specs, strict=True
        ):
            where.create_container(uid, metadata=metadata, specs=each)


@contextlib.contextmanager
def timed(what):
    passed, spent = time.perf_counter(), time.process_time()
    yield
    print(f"{what:<48} {time.perf_counter() - passed:6.2f} {time.process_time() - spent:6.2f}")


def main(session, folder):
    if not folder.exists():
        shutil.copytree(session, folder)
        with serve(folder) as uri, contextlib.closing(open_catalog(uri)) as catalog:
            multiply(catalog)
    with contextlib.ExitStack() as stack:

        def page(uri):
            made = Page(lambda: open_catalog(uri), KEY, public=False, config=load_config())
            return stack.enter_context(contextlib.closing(made))

        uri = stack.enter_context(serve(folder, api_key=KEY, read_only=True, page=page))
        client = stack.enter_context(
            httpx.Client(base_url=f"{uri.partition('/api/v1')[0]}/page/api/", trust_env=False, timeout=600)
        )
        client.headers["Authorization"] = f"Apikey {KEY}"
        with contextlib.closing(open_catalog(uri)) as catalog:
            uid = min(catalog.processed.items()[:1], key=str)[0]
        print(f"load of the machine: {os.getloadavg()[0]:.1f}")

        def ask(path, **params):
            answer = client.get(path, params=params)
            answer.raise_for_status()
            return answer

        print(f"{'':<48} passed  spent")
        with timed("list, the newest, when nothing was read yet"):
            found = ask("runs").json()
        with timed("list, all the rest"):
            while not found["whole"]:
                found = ask("runs").json()
        with timed("list, all of it, once it was read"):
            found = ask("runs").json()
        with timed("list, what changed"):
            ask("runs", epoch=found["epoch"], after=found["version"])
        with timed("one result, the first that is looked at"):
            view = ask(f"run/{uid}").json()
        update = len(view["updates"]["n_frames"]) - 1
        with timed("its phase"):
            ask(f"run/{uid}/image/phase.png", update=update)
        with contextlib.closing(open_catalog(uri)) as catalog:
            reader = Reader(catalog, load_config())
            reader.runs.find(uid)
            with timed("one result and its phase, with nothing kept"):
                reader.view(uid)
                reader.image(uid, "phase", update, 0, None)
        with timed("one result, looked at again"):
            ask(f"run/{uid}")
        print(f"runs in the list: {sum(not run['replaced'] for run in found['runs'])}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
