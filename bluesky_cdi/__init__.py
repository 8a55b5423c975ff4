"""Live, adaptive coherent diffraction imaging with Bluesky."""

__version__ = "0.1.0"
