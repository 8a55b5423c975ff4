"""Many recorded scans, each reconstructed by itself, by several workers: a series, an energy stack, a night's runs."""

from bluesky_cdi.many.page import write_page
from bluesky_cdi.many.plan import files_in, named, planned
from bluesky_cdi.many.rows import Row, row_of_result
from bluesky_cdi.many.run import run_tasks
from bluesky_cdi.many.runs import runs_in
from bluesky_cdi.many.summary import summary_of, table, write_summary
from bluesky_cdi.many.task import CatalogRun, Method, ScanFile, Source, Task

__all__ = [
    "CatalogRun",
    "Method",
    "Row",
    "ScanFile",
    "Source",
    "Task",
    "files_in",
    "named",
    "planned",
    "row_of_result",
    "run_tasks",
    "runs_in",
    "summary_of",
    "table",
    "write_page",
    "write_summary",
]
