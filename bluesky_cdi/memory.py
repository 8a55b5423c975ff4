"""Memory that a process has freed, and still holds."""

from __future__ import annotations

import ctypes


def give_memory_back() -> bool:
    """Have the C library give freed memory back to the system; whether it can."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        # Not glibc.
        return False
    trim(0)
    return True
