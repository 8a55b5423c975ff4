"""Memory that a process has freed, and still holds; and what it will hold until its end."""

from __future__ import annotations

import ctypes
import gc


def give_memory_back() -> bool:
    """Have the C library give freed memory back to the system; whether it can."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        # Not glibc.
        return False
    trim(0)
    return True


def keep_loaded() -> int:
    """Have no collection of garbage look through what is there by now: modules, a session, its devices.

    They stay until the process ends, and there are some hundred thousands of them. A full collection, which looks
    through all, holds every thread of Python up for some tenths of a second, a scan too. For processes that this
    package has to itself, and for profiles. What is kept and then becomes garbage in cycles is never freed.

    Returns
    -------
    int
        How many objects are kept.
    """
    gc.collect()
    gc.freeze()
    return gc.get_freeze_count()
