"""Recorded scans and reconstructions in files: every reader of scans returns one `Scan`."""

from bluesky_cdi.io._files import open_npz, written_whole
from bluesky_cdi.io.canonical import read_canonical, write_canonical
from bluesky_cdi.io.checkpoint import CheckpointFile, CheckpointHeader, read_checkpoint, remove_checkpoint
from bluesky_cdi.io.compression import COMPRESSIONS, Rounding, filter_options, with_rounded_counts
from bluesky_cdi.io.cxi import read_cxi, write_cxi
from bluesky_cdi.io.cxi_result import read_cxi_notes, read_cxi_result, write_cxi_result
from bluesky_cdi.io.detector import DetectorPlan
from bluesky_cdi.io.formats import read_reconstruction, read_scan, scan_files, scan_formats, write_scan
from bluesky_cdi.io.frame_dataset import FrameDataset
from bluesky_cdi.io.frame_stack import FrameStack, read_frames
from bluesky_cdi.io.frames import Frames, LazyFrames, photons_of_frames
from bluesky_cdi.io.images import read_array, read_image
from bluesky_cdi.io.inspection import Inspection, inspect_frames
from bluesky_cdi.io.nexus_result import write_nexus_result
from bluesky_cdi.io.plain_results import notes_of, read_npz_result, write_npz_result, write_tiff
from bluesky_cdi.io.preprocessing import Preprocessing
from bluesky_cdi.io.probe_file import ProbeFile, read_probe, write_probe
from bluesky_cdi.io.product import Product, read_product, write_product
from bluesky_cdi.io.ptychodus import read_ptychodus, write_ptychodus
from bluesky_cdi.io.ptychopinn import read_ptychopinn, write_ptychopinn
from bluesky_cdi.io.reference import Reference, read_reference
from bluesky_cdi.io.scan import ROUNDED, Scan
from bluesky_cdi.io.single_shot_result import SingleShotImage, read_single_shot, write_single_shot

__all__ = [
    "COMPRESSIONS",
    "ROUNDED",
    "CheckpointFile",
    "CheckpointHeader",
    "DetectorPlan",
    "FrameDataset",
    "FrameStack",
    "Frames",
    "Inspection",
    "LazyFrames",
    "Preprocessing",
    "ProbeFile",
    "Product",
    "Reference",
    "Rounding",
    "Scan",
    "SingleShotImage",
    "filter_options",
    "inspect_frames",
    "notes_of",
    "open_npz",
    "photons_of_frames",
    "read_array",
    "read_canonical",
    "read_checkpoint",
    "read_cxi",
    "read_cxi_notes",
    "read_cxi_result",
    "read_frames",
    "read_image",
    "read_npz_result",
    "read_probe",
    "read_product",
    "read_ptychodus",
    "read_ptychopinn",
    "read_reconstruction",
    "read_reference",
    "read_scan",
    "read_single_shot",
    "remove_checkpoint",
    "scan_files",
    "scan_formats",
    "with_rounded_counts",
    "write_canonical",
    "write_cxi",
    "write_cxi_result",
    "write_nexus_result",
    "write_npz_result",
    "write_probe",
    "write_product",
    "write_ptychodus",
    "write_ptychopinn",
    "write_scan",
    "write_single_shot",
    "write_tiff",
    "written_whole",
]
