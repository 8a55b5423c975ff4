"""What a check finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One line of a report.

    Attributes
    ----------
    name : str
        What was looked at.
    level : {'ok', 'warn', 'fail'}
        Whether it is right; works, but not as one would want; or keeps a scan from being measured or reconstructed.
    found : str
        What there is.
    advice : str
        How to mend it; empty where nothing is to be done.
    """

    name: str
    level: Literal["ok", "warn", "fail"]
    found: str
    advice: str = ""
