"""The picture of a run while it goes on: in a window, in notebooks, in a file, as a film."""

from bluesky_cdi.live_view.view import LiveView

__all__ = ["LiveView"]
