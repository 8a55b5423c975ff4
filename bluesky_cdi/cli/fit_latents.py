"""``bluesky-cdi fit-latents``: the projection of embeddings by a network or a frame encoder, from simulated scenes."""

from __future__ import annotations

import argparse
import logging
from typing import Any

from bluesky_cdi.cli.arguments import count, positive
from bluesky_cdi.cli.output import say_result

logger = logging.getLogger(__name__)

# Scenes between two lines of the log.
TELL_EVERY = 20


def add_fit_latents(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to `commands`, with the `common` options.

    Parameters
    ----------
    commands : argparse subparsers
        Those of ``bluesky-cdi``.
    common : ArgumentParser
        Options that every command has.
    """
    command = commands.add_parser(
        "fit-latents", parents=[common],
        help="find the projection of latents from simulated scenes, and write it beside the weights",
    )  # fmt: skip
    add = command.add_argument
    add("weights", help="name of shipped weights, a network's or a frame encoder's, or a .safetensors file")
    add("--scenes", type=positive, default=400, help="that it rests on; as many more check it (default: %(default)s)")
    add("--seed", type=count, default=1, help="of the scenes (default: %(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:0 (default: %(default)s)")
    command.set_defaults(run=_fit)


def _fit(args: argparse.Namespace) -> int:
    import torch

    from bluesky_cdi import __version__
    from bluesky_cdi.latents.fitting import fit_projection, fit_record
    from bluesky_cdi.latents.store import path_beside, save_projection
    from bluesky_cdi.models.frame_weights import is_encoder, load_frame_model
    from bluesky_cdi.models.weights import Trained, load_weights, path_of
    from bluesky_cdi.reconstruction.latent_scenes import class_tokens_of, critic_of, draw_scenes, embed_scenes

    name = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    device, path = torch.device(name), path_of(args.weights)
    trained = load_frame_model(path, device) if is_encoder(path) else load_weights(args.weights, name)
    describes = critic_of(trained.unrolled_net) if isinstance(trained, Trained) else class_tokens_of(trained)

    def embedded(seed: int) -> Any:
        def tell(done: int) -> None:
            if done % TELL_EVERY == 0:
                logger.info("%d of %d scenes with seed %d", done, args.scenes, seed)

        return embed_scenes(describes, draw_scenes(device, args.scenes, seed), seed, tell)

    fitted, others = embedded(args.seed), embedded(args.seed + 1)
    projection = fit_projection(fitted, others, trained.sha256)
    numbers = {
        "weights": trained.name,
        "scenes": args.scenes,
        "seed": args.seed,
        **fit_record(projection, fitted, others),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "bluesky_cdi": __version__,
    }
    path = path_beside(path)
    save_projection(path, projection, numbers)
    moved = numbers["moved"]
    rows = [
        ("scenes", f"{args.scenes} with {numbers['frames']} frames, and as many others"),
        ("moved when read again", f"{moved['latents']:.2f} of how frames differ ({moved['embedding']:.2f} before)"),
        ("written", str(path)),
    ]
    say_result(args, {**numbers, "written": str(path)}, rows)
    return 0
