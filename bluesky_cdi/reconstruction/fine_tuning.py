"""Fine-tuning of the unrolled network on the frames of one run: no labels, within a time.

The frames are their own judge. The network predicts from a random part of the frames of a small window, and the loss
is the Poisson deviance of all of them under the object that it makes, so it can't fit the noise of frames that it
doesn't see. Every tenth frame is kept out of all that, and decides which state of network and probe is kept: by the
object that a reconstruction gets of it (`predict_object`). Fewer than ten frames judge themselves, and can't tell the
probe from the object: the probe then stays. Of a network for several passes each step tunes one.

The probe comes first: an engine refines it for a part of the time, because a wrong probe is a fault
that the network would otherwise learn to undo.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from bluesky_cdi.engines.lsqml import Lsqml
from bluesky_cdi.engines.ptychography import Schedule, Solution, deviance_of, iterate
from bluesky_cdi.engines.steps import probe_spectrum, transmission
from bluesky_cdi.models.unrolled import UnrolledNet
from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.reconstruction.frames import MeasuredFrames
from bluesky_cdi.reconstruction.prediction import predict_object
from bluesky_cdi.reconstruction.region_solver import RegionSolver
from bluesky_cdi.reconstruction.shared_probe import SharedProbe
from bluesky_cdi.reconstruction.windows import HeldOutWindow, ScanWindows
from bluesky_cdi.training.losses import relative_deviance

logger = logging.getLogger(__name__)

Ended = Literal["time", "not finite"]

# The slopes of saturated GELUs are denormal numbers, with which a CPU computes a backward pass four times slower.
# Neither Adam nor a clipping relative to the usual gradient sees the factor.
LOSS_SCALE = 2.0**40
# A gradient longer than this many times the usual one is shortened; how long that is depends on the photons.
LONGEST_GRADIENT = 3.0
# The usual gradient is a mean over about as many steps as Adam's second moment remembers.
MEMORY = 0.99
# Held-out frames of a window: of one in ten, so many lie well inside 32 neighbours.
JUDGED_FRAMES = 4
# Frames of a run that are learned from, the first ones of the newest epoch: more would need all of them on the device.
RUN_FRAMES = 2048
# What is given, the refined probe and the last state are always judged; all three have to fit into the time for it.
LEAST_JUDGEMENTS = 3


@dataclass(frozen=True)
class FineTuneConfig:
    """How a network is tuned.

    Parameters
    ----------
    learning_rate : float
        Peak of Adam's.
    warm_up : int
        Steps over which it rises; over the time of a call it falls to zero.
    window_frames : int
        Most frames of a window, which bounds memory and time of a step.
    input_share : float
        Share of a window's frames that the network predicts from.
    probe_share : float
        Most of the time that an engine may refine the probe in; 0 where the caller has refined it.
    probe_epochs : int
        Most epochs of the engine.
    probe_frames : int
        Most frames, neighbours in the middle of the scan, from which the engine learns the probe.
    probe_step : float
        Share of the change of the probe that a window's frames ask for and that is made with each step.
    judge_share : float
        Most of the time that is spent on held-out frames.
    judge_windows : int
        Most windows of held-out frames; fewer where the time for them is short, one at least.
    """

    learning_rate: float = 5e-4
    warm_up: int = 20
    window_frames: int = 32
    input_share: float = 0.8
    probe_share: float = 0.4
    probe_epochs: int = 100
    probe_frames: int = 512
    probe_step: float = 0.1
    judge_share: float = 0.1
    judge_windows: int = 8


@dataclass(frozen=True, eq=False)
class FineTuned:
    """What tuning came to.

    Attributes
    ----------
    net : UnrolledNet
        The network given, itself, where no tuned state was better; a copy else.
    probe : Tensor, shape (1, M, N, N), complex64
        With as many photons as the first guess.
    before, after : float
        Poisson deviance per valid pixel of held-out frames under given network and probe, and under those here.
    steps : int
        Steps made.
    seconds : float
        Time that the tuning took.
    kept : bool
        Whether network or probe differ from those given: only if the held-out frames are explained better.
    ended : {'time', 'not finite'}
        The second: frames, probe or a step hold what is no number; the best state before is here.
    """

    net: UnrolledNet
    probe: Tensor
    before: float
    after: float
    steps: int
    seconds: float
    kept: bool
    ended: Ended


@dataclass(frozen=True, eq=False)
class _State:
    """Network and probe, and the deviance of the held-out frames under them."""

    net: UnrolledNet
    probe: Tensor
    deviance: float


class FineTuner:
    """Tunes a copy of a network on a run's frames, call after call.

    Network, optimiser and random order go on from one call to the next, with the frames and the probe of each call.

    Parameters
    ----------
    net : UnrolledNet
        Stays as it is.
    config : FineTuneConfig, optional
        Learning rate, windows and what is judged; the defaults if absent.
    seed : int
        Seed of the windows and of the frames of them that the network is given.
    clock : callable
        Seconds; the budget is measured with it.
    """

    def __init__(
        self,
        net: UnrolledNet,
        config: FineTuneConfig | None = None,
        *,
        seed: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config or FineTuneConfig()
        self._given = net
        self._seed = seed
        self._clock = clock
        self._generator = torch.Generator().manual_seed(seed)
        self._net = copy.deepcopy(net).requires_grad_(True)
        # It judges any object, so it needs no tuning, and there is no truth to tune it with.
        self._net.critic.requires_grad_(False)
        self._parameters = [p for p in self._net.parameters() if p.requires_grad]
        self._tuned: UnrolledNet | None = None
        self._begin_anew(net)

    def tune(
        self,
        probe: Tensor,
        data: Diffraction,
        budget_s: float,
        on_progress: Callable[[float, float], None] | None = None,
    ) -> FineTuned:
        """Tune for some time, at least one step.

        Parameters
        ----------
        probe : Tensor, shape (1, M, N, N), complex64
            Its photons are kept.
        data : Diffraction
            All frames measured so far, new ones behind the others; one scene.
        budget_s : float
            No step begins after this time. One epoch of the engine and one step are made in any case.
        on_progress : callable, optional
            Called with the seconds so far and the deviance of the held-out frames whenever that is computed.

        Returns
        -------
        FineTuned
            Never worse on the held-out frames than what was given.
        """
        call = _Call(self._clock, budget_s, self.config, ScanWindows(data), on_progress)
        first = best = call.judged(self._given, probe)
        if not math.isfinite(first.deviance):
            logger.warning("nothing is tuned: the deviance of held-out frames is %s, not finite", first.deviance)
            return self._result(call, first, first, 0, "not finite")
        if self._tuned is not None:
            best = _better(best, call.judged(self._tuned, probe))
        if self.config.probe_share > 0 and call.windows.independent:
            best = _better(best, call.judged(best.net, self._refined_probe(call, best)))
        best, steps, ended = self._descend(call, best)
        if ended == "not finite":
            self._begin_anew(best.net)
        self._tuned = None if best.net is self._given else best.net
        return self._result(call, first, best, steps, ended)

    def _begin_anew(self, net: UnrolledNet) -> None:
        """Go on from a network, with nothing remembered of the steps before."""
        self._net.load_state_dict(net.state_dict())
        self._optimiser = torch.optim.Adam(self._parameters, betas=(0.9, MEMORY))
        self._steps = 0
        self._usual_gradient = 0.0

    def _descend(self, call: _Call, best: _State) -> tuple[_State, int, Ended]:
        """Take steps until the time is over; the best state met, how many steps, and why they end."""
        probe, begun, steps = best.probe, call.progress, 0
        share = self.config.probe_step if call.windows.independent else 0.0
        while not steps or not call.over:
            self._set_rate((call.progress - begun) / max(1 - begun, 1e-9))
            moved = self._step(probe, share, call.windows.random(self.config.window_frames, self._generator))
            if moved is None:
                logger.warning("fine-tuning ends after %d steps: the next would not be finite", steps)
                return best, steps, "not finite"
            probe, steps = moved, steps + 1
            if call.may_judge or call.over:
                now = call.judged(self._net, probe)
                best = replace(now, net=_frozen(now.net)) if now.deviance < best.deviance else best
        return best, steps, "time"

    def _step(self, probe: Tensor, probe_share: float, window: Diffraction) -> Tensor | None:
        """Make a step of the network; the probe after `probe_share` of its own.

        None: it would not be finite, and isn't made.
        """
        # Callers are free to compute without gradients.
        given = window[self._given_frames(len(window)).to(probe.device)]
        start = self._some_passes(probe, given)
        with torch.enable_grad():
            obj = self._net(probe, given, start)[-1]
            loss = relative_deviance(obj, probe, window).mean()
            self._optimiser.zero_grad(set_to_none=True)
            (LOSS_SCALE * loss).backward()  # type: ignore[no-untyped-call]
        longest = LONGEST_GRADIENT * self._usual_gradient if self._usual_gradient else math.inf
        length = float(nn.utils.clip_grad_norm_(self._parameters, longest))
        moved = moved_probe(obj.detach(), probe, window, probe_share)
        if not (math.isfinite(length) and bool(torch.isfinite(loss) & torch.isfinite(moved).all())):
            return None
        self._optimiser.step()
        self._steps += 1
        usual = self._usual_gradient or length
        self._usual_gradient = MEMORY * usual + (1 - MEMORY) * min(length, longest)
        return moved

    def _given_frames(self, count: int) -> Tensor:
        """Draw the numbers of a window's frames that the network is given: at least one, and of several not all."""
        return torch.randperm(count, generator=self._generator)[: max(1, int(self.config.input_share * count))]

    @torch.no_grad()
    def _some_passes(self, probe: Tensor, given: Diffraction) -> Tensor | None:
        """Make some passes, less by one at least than the network is for; None: vacuum, where there are none."""
        obj = None
        if (passes := self._net.config.passes) > 1:
            for _ in range(int(torch.randint(passes, (), generator=self._generator))):
                obj = self._net(probe, given, obj)[-1]
        return obj

    def _set_rate(self, progress: float) -> None:
        warm_up = min(1.0, (self._steps + 1) / self.config.warm_up)
        falling = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        for group in self._optimiser.param_groups:
            group["lr"] = self.config.learning_rate * warm_up * falling

    @torch.no_grad()
    def _refined_probe(self, call: _Call, state: _State) -> Tensor:
        """Find a probe by an engine that begins with the state's network and probe."""
        middle = call.windows.training[len(call.windows.training) // 2]
        part = call.windows.around(int(middle), self.config.probe_frames)
        start = Solution.start(predict_object(state.net, state.probe, part), state.probe, part)

        def in_time(epochs: int, solution: Solution) -> bool:
            return call.progress < self.config.probe_share

        found = iterate(Lsqml(seed=self._seed), start, Schedule(self.config.probe_epochs), in_time)
        return with_photons_of(found.solution.probe, state.probe)

    def _result(self, call: _Call, first: _State, best: _State, steps: int, ended: Ended) -> FineTuned:
        kept = best is not first
        return FineTuned(best.net, best.probe, first.deviance, best.deviance, steps, call.seconds, kept, ended)


class RunTuner:
    """Tune a network on the first frames of a run, each time going on from the time before.

    Parameters
    ----------
    seed : int
        Seed of what is drawn.
    seconds : float
        Time of each tuning; 0: none is wanted.

    Attributes
    ----------
    steps : int
        Steps made so far.
    """

    def __init__(self, seed: int, seconds: float) -> None:
        self.steps = 0
        self._seed, self._seconds = seed, seconds
        self._tuner: FineTuner | None = None

    @property
    def is_wanted(self) -> bool:
        """Whether there is time for it."""
        return self._seconds > 0

    def tune(self, solver: RegionSolver, probe: SharedProbe, frames: MeasuredFrames) -> bool:
        """Tune a solver's network, which is then used with the probe that was found.

        Parameters
        ----------
        solver : RegionSolver
            Its network is tuned the first time; without one there is nothing to do.
        probe : SharedProbe
            Under which it predicts.
        frames : MeasuredFrames
            Those of the run by now.

        Returns
        -------
        bool
            Whether the network has become better: what it has predicted is outdated.
        """
        if solver.net is None:
            return False
        if self._tuner is None:
            self._tuner = FineTuner(solver.net, seed=self._seed)
        found = self._tuner.tune(probe.modes, frames.diffraction(frames.light.newest[:RUN_FRAMES]), self._seconds)
        self.steps += found.steps
        if found.kept:
            solver.net = found.net
            probe.publish(found.probe)
        return found.kept


class _Call:
    """The time and the frames of one call of `FineTuner.tune`."""

    def __init__(
        self,
        clock: Callable[[], float],
        budget_s: float,
        config: FineTuneConfig,
        windows: ScanWindows,
        on_progress: Callable[[float, float], None] | None,
    ) -> None:
        self.windows = windows
        self._clock, self._budget_s, self._config, self._on_progress = clock, budget_s, config, on_progress
        self._started = clock()
        self._judging = windows.judging(config.judge_windows, config.window_frames, JUDGED_FRAMES)
        self._allowed_s = config.judge_share * budget_s
        self._spent_s, self._last_s = 0.0, 0.0

    @property
    def seconds(self) -> float:
        """Since the call began."""
        return self._clock() - self._started

    @property
    def progress(self) -> float:
        """Share of the time that is over."""
        return self.seconds / self._budget_s if self._budget_s > 0 else 1.0

    @property
    def over(self) -> bool:
        """Whether the time that is left is just enough to judge the last state."""
        return self.seconds + self._last_s >= self._budget_s

    @property
    def may_judge(self) -> bool:
        """Whether judging now stays within its share of the time."""
        return self._spent_s + self._last_s <= self._config.judge_share * self.seconds

    def judged(self, net: UnrolledNet, probe: Tensor) -> _State:
        """Judge network and probe by the deviance of held-out frames, from which the network doesn't predict."""
        began, values = self._clock(), []
        for window in self._judging:
            values.append(held_out_deviance(net, probe, window))
            if not self._last_s and self._clock() - began > self._allowed_s / LEAST_JUDGEMENTS:
                break
        # As many windows as the first judgement had time for: figures of one call must be of the same frames.
        self._judging = self._judging[: len(values)]
        deviance = float(torch.cat(values).mean())
        self._last_s = self._clock() - began
        self._spent_s += self._last_s
        if self._on_progress is not None:
            self._on_progress(self.seconds, deviance)
        return _State(net, probe, deviance)


@torch.no_grad()
def held_out_deviance(net: UnrolledNet, probe: Tensor, window: HeldOutWindow) -> Tensor:
    """Compute how badly held-out frames are explained by what the network predicts from their neighbours.

    Parameters
    ----------
    net : UnrolledNet
        The network.
    probe : Tensor, shape (1, M, N, N), complex64
        Its modes.
    window : HeldOutWindow
        The frames that the network is given, and those held out.

    Returns
    -------
    Tensor, shape (n,)
        Poisson deviance of each held-out frame a valid pixel.
    """
    return deviance_of(predict_object(net, probe, window.given), probe, window.judged)


@torch.no_grad()
def moved_probe(obj: Tensor, probe: Tensor, data: Diffraction, share: float) -> Tensor:
    """Move a probe by a part of the change that frames ask for, by rPIE's rule with beta = 1/2; its photons stay.

    The rule's length needs no learning rate: it is known in photons where the object transmits any.

    Parameters
    ----------
    obj : Tensor, shape (1, Y, X), complex
        The object.
    probe : Tensor, shape (1, M, N, N), complex
        Its modes.
    data : Diffraction
        The frames.
    share : float
        0: the probe stays.

    Returns
    -------
    Tensor, shape (1, M, N, N)
    """
    if share == 0:
        return probe
    patches = data.patches(obj)
    asked, _ = data.exit_wave_step(data.probes(probe), patches, "poisson")
    power = transmission(patches, data)
    change = torch.fft.ifft2(probe_spectrum(patches, asked, data)) / (0.5 * (power + power.max()))
    return with_photons_of(probe + share * change, probe)


def with_photons_of(probe: Tensor, other: Tensor) -> Tensor:
    """Give a probe as many photons as another: the gauge of the network's predictions.

    Parameters
    ----------
    probe : Tensor, shape (1, M, N, N), complex64
        What is scaled.
    other : Tensor, shape (1, M, N, N), complex64
        Whose photons it gets.
    """
    scaled: Tensor = probe * (other.abs().square().sum() / probe.abs().square().sum()).sqrt()
    return scaled


def _better(best: _State, other: _State) -> _State:
    """Choose the other only if it is better: NaN never is."""
    return other if other.deviance < best.deviance else best


def _frozen(net: UnrolledNet) -> UnrolledNet:
    """Make a copy that isn't trained any more."""
    copied = copy.deepcopy(net).eval().requires_grad_(False)
    copied.zero_grad(set_to_none=True)
    return copied
