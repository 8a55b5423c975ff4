"""``bluesky-cdi doctor``: what is right, what is wrong, and how to mend it."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bluesky_cdi.cli.output import say

if TYPE_CHECKING:
    from bluesky_cdi.doctor import Finding


def add_doctor(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to `commands`, with the `common` options.

    Parameters
    ----------
    commands : argparse subparsers
        Those of ``bluesky-cdi``.
    common : ArgumentParser
        Options that every command has.
    """
    command = commands.add_parser(
        "doctor", parents=[common], help="what is wrong with installation, configuration and devices; moves nothing"
    )
    command.add_argument("profile", nargs="?", help="a profile's name or folder: its configuration and devices too")
    command.add_argument(
        "--frame", type=Path, metavar="FILE", help="trigger the profile's detector once, and draw its frame there"
    )
    command.set_defaults(run=_doctor)


def _doctor(args: argparse.Namespace) -> int:
    import os

    from bluesky_cdi.config import FILES_VARIABLE, files_in_environment, load_config
    from bluesky_cdi.doctor import Finding, examine_installation, examine_profile, examine_sampling
    from bluesky_cdi.errors import BlueskyCDIError, ConfigError
    from bluesky_cdi.profiles import profile_directory

    if args.frame is not None and args.profile is None:
        raise BlueskyCDIError("--frame needs a profile, whose detector takes it")
    findings: list[Finding] = []

    def tell(finding: Finding) -> None:
        findings.append(finding)
        if not args.json:
            _say(finding)

    folder = None if args.profile is None else profile_directory(args.profile)
    files = [
        *([folder / "config.yaml"] if folder is not None and (folder / "config.yaml").exists() else []),
        *(args.config or files_in_environment()),
    ]
    try:
        config = load_config(files)
        tell(Finding("configuration", "ok", ", ".join(map(str, files)) or "defaults"))
    except ConfigError as err:
        tell(Finding("configuration", "fail", str(err), "Every key is explained in bluesky_cdi/config.py."))
    else:
        if args.config:
            os.environ[FILES_VARIABLE] = os.pathsep.join(str(path.resolve()) for path in args.config)
        for examined in (examine_installation(config), examine_sampling(config)):
            for finding in examined:
                tell(finding)
        for finding in examine_profile(folder, args.frame) if folder is not None else ():
            tell(finding)
    failed = sum(finding.level == "fail" for finding in findings)
    if args.json:
        say(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        warned = sum(finding.level == "warn" for finding in findings)
        say(f"{len(findings)} looked at: {failed} wrong, {warned} to think about")
    return int(failed > 0)


def _say(finding: Finding) -> None:
    say(f"{finding.level:<4}  {finding.name:<16}  {finding.found}")
    if finding.advice:
        say(f"{'':<4}  {'':<16}  -> {finding.advice}")
