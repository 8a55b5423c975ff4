"""The client of Kafka, which is an extra, and its settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bluesky_cdi.errors import ConfigError

# Settings that a follower makes itself.
OWN = {"bootstrap.servers", "group.id", "enable.auto.commit", "auto.offset.reset", "partition.assignment.strategy"}


def kafka() -> Any:
    """Import the client.

    Raises
    ------
    ConfigError
        If it is not installed.
    """
    try:
        import confluent_kafka
    except ImportError as err:
        raise ConfigError(f"Kafka needs an extra: pip install 'bluesky-cdi[kafka]' ({err})") from err
    return confluent_kafka


def read_settings(path: Path) -> dict[str, Any]:
    """Read further settings of the client, such as ``security.protocol`` and ``sasl.username``.

    Parameters
    ----------
    path : path
        YAML: a mapping of names and plain values.

    Raises
    ------
    ConfigError
        If it can't be read, holds something else, or one of the settings that a follower makes.
    """
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as err:
        # Without the error itself, which quotes lines of a file that has a password.
        raise ConfigError(f"can't read the settings of the Kafka client in {path} ({type(err).__name__})") from None
    if not isinstance(found, dict) or any(isinstance(value, (dict, list)) for value in found.values()):
        raise ConfigError(f"{path} must hold a mapping of names and plain values, security.protocol: SASL_SSL")
    if own := sorted(OWN & found.keys()):
        raise ConfigError(f"{path} must not set {', '.join(own)}: the command's options do")
    return {str(name): value for name, value in found.items()}
