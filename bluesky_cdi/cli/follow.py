"""``bluesky-cdi follow``: runs that other RunEngines publish are reconstructed live, until Ctrl-C."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bluesky_cdi.cli.arguments import above_0, add_paths, configured, make_folder, positive
from bluesky_cdi.cli.output import say
from bluesky_cdi.errors import BlueskyCDIError
from bluesky_cdi.plain import to_json

if TYPE_CHECKING:
    from bluesky_cdi.follow import Finished, Source
    from bluesky_cdi.follow.zmq_ends import Curve

# Those of one group share the runs; those of others have them all.
GROUP = "bluesky-cdi"


def add_follow(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to `commands`, with the `common` options.

    Parameters
    ----------
    commands : argparse subparsers
        Those of ``bluesky-cdi``.
    common : ArgumentParser
        Options that every command has.
    """
    command = commands.add_parser(
        "follow", parents=[common], help="reconstruct runs that other RunEngines publish, until Ctrl-C"
    )
    add = command.add_argument
    add("directory", type=Path, nargs="?", help="folder of catalog and journal (default: the configured one)")
    where = command.add_mutually_exclusive_group(required=True)
    where.add_argument("--zmq", metavar="HOST:PORT", help="a proxy of bluesky.callbacks.zmq, its outer address")
    where.add_argument("--kafka", metavar="BOOTSTRAP", help="brokers of Kafka, HOST:PORT,HOST:PORT")
    _add_source(command)
    which = command.add_argument_group("which runs")
    which.add_argument(
        "--only", action="append", default=[], metavar="KEY=VALUE", help="what the start document must say; repeatable"
    )
    which.add_argument("--share", default="1/1", metavar="K/N", help="the K-th part of the runs, of N followers")
    add_paths(command)
    add("--at-once", type=positive, default=2, metavar="N", help="so many runs at a time (default: %(default)s)")
    add(
        "--silent-s",
        type=above_0,
        default=600.0,
        metavar="SECONDS",
        help="a run is ended of which nothing has come for so long, if a later one has begun (default: %(default)s)",
    )
    add("--images", type=Path, metavar="FOLDER", help="draw each result into this folder, as PNG, without a window")
    add("--publish", metavar="WHERE", help="publish results: the proxy's inner HOST:PORT, or a topic of Kafka")
    command.set_defaults(run=_follow)


def _add_source(command: argparse.ArgumentParser) -> None:
    zmq = command.add_argument_group("0MQ")
    zmq.add_argument("--prefix", default="", help="of the documents that are wanted (default: all)")
    zmq.add_argument("--curve-secret", type=Path, metavar="FILE", help="this side's secret key, for CURVE")
    zmq.add_argument("--curve-server", type=Path, metavar="FILE", help="the proxy's public key")
    zmq.add_argument(
        "--trust-pickle",
        action="store_true",
        help="read pickled documents: whoever can publish to the proxy can then run code here; of this machine or by "
        "CURVE only",
    )
    kafka = command.add_argument_group("Kafka")
    kafka.add_argument("--topic", help="which topic")
    kafka.add_argument("--group", default=GROUP, help="followers of one group share the runs (default: %(default)s)")
    kafka.add_argument("--kafka-settings", type=Path, metavar="FILE", help="YAML: further settings of the client")
    kafka.add_argument("--from-start", action="store_true", help="a new group begins with all that the topic holds")


def _follow(args: argparse.Namespace) -> int:
    from bluesky_cdi.callbacks import SharedFolders
    from bluesky_cdi.follow import Follower, Selection
    from bluesky_cdi.signals import EndingSignals, FirstInterrupt

    if not args.quiet:
        # What it does is said on the way: there is nothing else to see.
        logging.getLogger("bluesky_cdi.follow").setLevel(logging.INFO)
    config = configured(args)
    # Looked at before anything is begun.
    selection, paths, publish = Selection.parse(args.only, args.share), SharedFolders.parse(args.paths), _publish(args)
    if args.images is not None:
        make_folder(args.images)
    with EndingSignals(), FirstInterrupt("runs under way are followed to their end", "they are cut off") as wish:
        follower = Follower(
            config,
            _source(args),
            args.directory,
            selection=selection,
            paths=paths,
            at_once=args.at_once,
            silent_s=args.silent_s,
            images=args.images,
            publish=publish,
            tell=lambda finished: _tell(args, finished),
        )
        with follower:
            follower.run(lambda: wish.came)
    return 0


def _source(args: argparse.Namespace) -> Source:
    if args.zmq is not None:
        from bluesky_cdi.follow.zmq_source import ZmqSource

        return ZmqSource(args.zmq, args.prefix, curve=_curve(args), trust_pickle=args.trust_pickle)
    from bluesky_cdi.follow.kafka_source import KafkaSource

    if args.trust_pickle or args.prefix or args.curve_secret or args.curve_server:
        raise BlueskyCDIError("--prefix, --trust-pickle and the keys of CURVE belong to --zmq: leave them out")
    if args.topic is None:
        raise BlueskyCDIError("--kafka needs a topic: --topic NAME")
    settings = _kafka_settings(args)
    return KafkaSource(args.kafka, args.topic, args.group, settings=settings, from_start=args.from_start)


def _curve(args: argparse.Namespace) -> Curve | None:
    from bluesky_cdi.follow.zmq_ends import Curve

    if (args.curve_secret is None) != (args.curve_server is None):
        raise BlueskyCDIError("CURVE needs two keys: --curve-secret, this side's, and --curve-server, the proxy's")
    return None if args.curve_secret is None else Curve(args.curve_secret, args.curve_server)


def _kafka_settings(args: argparse.Namespace) -> dict[str, Any]:
    from bluesky_cdi.follow.kafka_ends import read_settings

    return {} if args.kafka_settings is None else read_settings(args.kafka_settings)


def _publish(args: argparse.Namespace) -> dict[str, Any] | None:
    """Give the arguments of what publishes results, as plain values: it is in other processes."""
    if args.publish is None:
        return None
    if args.zmq is None:
        settings = {**_kafka_settings(args), "bootstrap.servers": args.kafka}
        return {"kafka": {"settings": settings, "topic": args.publish}}
    from bluesky_cdi.follow.zmq_ends import address_of

    keys = None if (curve := _curve(args)) is None else [str(curve.secret.resolve()), str(curve.server.resolve())]
    return {"zmq": {"address": address_of(args.publish), "prefix": args.prefix, "curve": keys}}


def _tell(args: argparse.Namespace, finished: Finished) -> None:
    """Print a line for a run: in JSON if that is asked for."""
    if args.json:
        say(to_json(vars(finished)))
    else:
        result = "no image" if finished.result_uid is None else f"{finished.n_frames} frames in {finished.result_uid}"
        say(f"run {finished.scan_id} ({finished.raw_uid[:8]}): {result}: {finished.said}")
    sys.stdout.flush()
