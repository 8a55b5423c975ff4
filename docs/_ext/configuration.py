"""Every key of the configuration, in Markdown, from the classes that define it."""

import re
import types
import typing
from inspect import cleandoc
from pathlib import Path

from pydantic.fields import FieldInfo

from bluesky_cdi.config import Config, Section

# Ends of a key's name, the longer ones first, and the units that they stand for.
UNITS = {
    "_m_per_s": "metres per second", "_ev": "electronvolts", "_um": "micrometres", "_px": "pixels", "_deg": "degrees",
    "_rad": "radians", "_m": "metres", "_s": "seconds",
    # Memory is counted in powers of two, room on disks in powers of ten.
    "memory_mb": "MiB (2^20 bytes)", "_mb": "MB (10^6 bytes)",
}  # fmt: skip
BOUNDS = {"gt": "> {}", "ge": "≥ {}", "lt": "< {}", "le": "≤ {}", "multiple_of": "a multiple of {}"}
NAMES = {int: "integer", float: "number", str: "text", bool: "true or false", Path: "path", type(None): "null"}


def configuration_lines() -> list[str]:
    """Give a section for each section of the configuration, and in it an entry for each of its keys."""
    lines = []
    for name, section in Config.model_fields.items():
        lines += [f"## {name}", "", *_linked(section.annotation.__doc__), ""]
        lines += _entries(name, section.annotation)
    return lines


def _entries(name: str, section: type[Section]) -> list[str]:
    """Give an entry for each key of a section, and for those of a section inside it."""
    lines = []
    for key, field in section.model_fields.items():
        inner = isinstance(field.annotation, type) and issubclass(field.annotation, Section)
        lines += _entries(f"{name}.{key}", field.annotation) if inner else _entry(f"{name}.{key}", field)
    return lines


def _entry(key: str, field: FieldInfo) -> list[str]:
    unit = next((unit for end, unit in UNITS.items() if key.endswith(end)), "")
    return [
        f":::{{confval}} {key}",
        f":type: {_type(field.annotation)}{_bounds(field)}{unit and f'; {unit}'}",
        f":default: `{_yaml(field.default)}`",
        "",
        *_linked(field.description),
        ":::",
        "",
    ]


def _linked(text: str) -> list[str]:
    """Make links of the pages that a docstring names."""
    return re.sub(r"\bdocs/([\w-]+\.md)", r"[more](\1)", cleandoc(text)).splitlines()


def _bounds(field: FieldInfo) -> str:
    known = [
        (text, getattr(part, name)) for part in field.metadata for name, text in BOUNDS.items() if hasattr(part, name)
    ]
    return "".join(f", {text.format(value)}" for text, value in known)


def _type(annotation: object) -> str:
    arguments = typing.get_args(annotation)
    match typing.get_origin(annotation):
        case typing.Literal:
            return " | ".join(f"`{_yaml(value)}`" for value in arguments)
        case types.UnionType | typing.Union:
            return " or ".join(map(_type, arguments))
        case origin if origin is tuple and arguments[-1] is Ellipsis:
            return f"list of {_type(arguments[0])}"
        case origin if origin is tuple:
            # Of one type: a pair, or a region.
            return f"list of {len(arguments)} {_type(arguments[0])}s"
        case _:
            return NAMES[annotation]


def _yaml(value: object) -> str:
    """Give a value as it would stand in a file."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))
