"""What a training run leaves behind: the state that it goes on from when it is interrupted, and where it was made."""

from __future__ import annotations

import pickle
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bluesky_cdi.errors import WeightsError
from bluesky_cdi.training.process_group import ProcessGroup
from bluesky_cdi.whole_file import whole_file


@dataclass(frozen=True, eq=False)
class RunFile:
    """The file with a run's state.

    Parameters
    ----------
    path : Path
        Where it is.
    run : str
        Which run it is of: whatever must be the same to go on.
    same : str
        That in words, for who gives something else.
    parts : Mapping
        What learns, by the names under which the file has their states.
    processes : ProcessGroup
        The processes that train; the leading one writes.
    """

    path: Path
    run: str
    same: str
    parts: Mapping[str, nn.Module | torch.optim.Optimizer]
    processes: ProcessGroup

    def save(self, **counts: Any) -> None:
        """Write the state, all of it or nothing; of a run without a step there is none.

        Parameters
        ----------
        **counts
            How far the run is (``step``, and what else goes on), plain values.
        """
        if not self.processes.leads or counts["step"] == 0:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        states = {name: part.state_dict() for name, part in self.parts.items()}
        with whole_file(self.path) as partial:
            torch.save({"run": self.run, **states, **counts}, partial)

    def load(self) -> dict[str, Any]:
        """Give the parts the states that were saved last; how far the run was.

        Returns
        -------
        dict
            What `save` was given.

        Raises
        ------
        WeightsError
            If there is no such file, or it is of another run.
        """
        try:
            state: dict[str, Any] = torch.load(self.path, map_location=self.processes.device, weights_only=True)
        except (OSError, RuntimeError, pickle.UnpicklingError) as err:
            raise WeightsError(f"can't resume from {self.path}: {err}. Start anew without resuming.") from err
        if (found := state.pop("run", None)) != self.run:
            raise WeightsError(
                f"{self.path} is of another run ({found}); resume it with the same options, {self.same}, or start anew"
            )
        for name, part in self.parts.items():
            part.load_state_dict(state.pop(name))
        return state


def made_on(processes: ProcessGroup) -> dict[str, Any]:
    """Describe where weights are made, for their record.

    Parameters
    ----------
    processes : ProcessGroup
        The processes that train.

    Returns
    -------
    dict
        ``device``, ``processes``, ``commit`` of the source, and version of ``torch``.
    """
    cuda = processes.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(processes.device) if cuda else platform.machine(),
        "processes": processes.size,
        "commit": commit_of_source(),
        "torch": torch.__version__,
    }


def commit_of_source() -> str | None:
    """Find the commit of the source that trains, where it is a git checkout."""
    line = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(line, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return found.stdout.strip() or None
