"""Recorded scans and reconstructions in files: every reader of scans returns one `Scan`."""

from bluesky_cdi.io.canonical import read_canonical, write_canonical
from bluesky_cdi.io.cxi import read_cxi, write_cxi
from bluesky_cdi.io.cxi_result import read_cxi_result, write_cxi_result
from bluesky_cdi.io.formats import read_reconstruction, read_scan, scan_formats, write_scan
from bluesky_cdi.io.frames import Frames, LazyFrames
from bluesky_cdi.io.product import Product, read_product, write_product
from bluesky_cdi.io.ptychodus import read_ptychodus, write_ptychodus
from bluesky_cdi.io.ptychopinn import read_ptychopinn, write_ptychopinn
from bluesky_cdi.io.reference import Reference, read_reference
from bluesky_cdi.io.scan import Scan

__all__ = [
    "Frames",
    "LazyFrames",
    "Product",
    "Reference",
    "Scan",
    "read_canonical",
    "read_cxi",
    "read_cxi_result",
    "read_product",
    "read_ptychodus",
    "read_ptychopinn",
    "read_reconstruction",
    "read_reference",
    "read_scan",
    "scan_formats",
    "write_canonical",
    "write_cxi",
    "write_cxi_result",
    "write_product",
    "write_ptychodus",
    "write_ptychopinn",
    "write_scan",
]
