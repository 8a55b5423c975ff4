"""Make the pictures of docs/live-view.md: those that the live view itself writes, at three moments of simulated scans.

python docs/live_view_pictures.py
"""

import contextlib
import io
import re
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from bluesky_cdi.config import load_config
from bluesky_cdi.plans import adaptive_ptycho, ptycho_raster
from bluesky_cdi.session import Session
from bluesky_cdi.sim_devices import simulated_beamline

HERE = Path(__file__).parent
BUDGET = 160
SETTINGS: dict[str, Any] = {
    "simulation": {"sample": "star"},
    "scan": {"budget": BUDGET},
    "live_view": {"window": "never", "file": "live.png"},
}


def keep(picture: Path, name: str) -> None:
    """Keep a picture for the page."""
    with Image.open(picture) as shown:
        shown.convert("RGB").save(HERE / f"live-view-{name}.jpg", quality=88, subsampling=0, optimize=True)


class Moments:
    """Copies a session's pictures while an agent leads the scan, by how many frames are in the image; -1: none is."""

    def __init__(self, session: Session, folder: Path) -> None:
        self._file, self._folder = session.directory / "live.png", folder
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Copy no more."""
        self._over.set()
        self._thread.join()

    def nearest(self, frames: int) -> Path:
        """Give the picture whose image has nearly so many frames."""
        return min(self._folder.glob("*.png"), key=lambda path: abs(int(path.stem) - frames))

    def _run(self) -> None:
        written = 0.0
        while not self._over.wait(0.05):
            if not self._file.is_file() or (now := self._file.stat().st_mtime) == written:
                continue
            written, content = now, self._file.read_bytes()
            with Image.open(io.BytesIO(content)) as picture:
                imaged = re.search(r"image of (\d+)", picture.info["Title"])
                if "next:" not in picture.info["Description"]:
                    continue
            (self._folder / f"{imaged[1] if imaged else -1}.png").write_bytes(content)


def main() -> None:
    """Run two scans: a raster that keeps the maps, and one that an agent leads."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pictures").mkdir()
        with scanning(folder / "raster", scan_maps="always") as (session, devices, scan):
            session.RE(ptycho_raster(*devices, session.live, **scan))
            session.wait()
        keep(session.directory / "live.png", "maps")
        with scanning(folder / "adaptive") as (session, devices, scan):
            moments = Moments(session, folder / "pictures")
            session.RE(adaptive_ptycho(*devices, session.live, budget=BUDGET, **scan))
            session.wait()
            moments.close()
        keep(moments.nearest(-1), "beginning")
        keep(moments.nearest(BUDGET // 2), "middle")
        keep(session.directory / "live.png", "end")


@contextlib.contextmanager
def scanning(folder: Path, **view: Any) -> Iterator[tuple[Session, tuple[Any, ...], dict[str, Any]]]:
    """Open a session; its devices, as plans take them, and where they scan."""
    config = load_config(overrides={**SETTINGS, "live_view": {**SETTINGS["live_view"], **view}})
    with Session(config, folder, monitor_key="i0") as session:
        line = simulated_beamline(config, session.frames_directory)
        devices = ([line.detector, line.monitor], line.stage.y, line.stage.x)
        yield session, devices, {"extent_um": config.scan.extent_um, "step_um": config.scan.step_um}


if __name__ == "__main__":
    main()
