"""What a check-in says, in plain words."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.physics.optics import pupil_step
from bluesky_cdi.reconstruction.probe_checkin.check import GROUPS, CheckIn
from bluesky_cdi.reconstruction.probe_checkin.gain import SIGMAS, Gain
from bluesky_cdi.reconstruction.probe_checkin.trial import Trial


def in_words(check: CheckIn, geometry: Geometry | None = None) -> str:
    """Say what was changed, and how sure that is.

    Parameters
    ----------
    check : CheckIn
        What was found.
    geometry : Geometry, optional
        Of the scan: gives lengths in metres.

    Returns
    -------
    str
        One sentence, or two where no phase was assumed.
    """
    if not check.changed:
        kept = (
            "The assumed probe stays"
            if check.known
            else "No probe was assumed, and the frames do not tell its defocus (it has the mean frame's amplitude and "
            "a flat phase)"
        )
        return f"{kept}: no change explains unseen frames better by more than {SIGMAS:g} standard errors and a tenth."
    parts = [_change(check, name, geometry) for name in check.gains]
    start = "" if check.known else "No probe was assumed; it is made from the mean frame. "
    end = f"together they explain unseen frames {_how_much(check.gain)}"
    return f"{start}Changed: {'; '.join(parts)}; {end}.{_which_side(check)}"


def notes_of(check: CheckIn, geometry: Geometry) -> dict[str, Any]:
    """Give what is kept with a result, as plain JSON values.

    Parameters
    ----------
    check : CheckIn
        What was found.
    geometry : Geometry
        Of the scan.
    """
    trial = check.trial
    powers = trial.powers or (check.network or trial).powers
    gains = {
        name: {"factor": gain.factor, "standard_errors": gain.in_errors}
        for name, gain in [*check.gains.items(), ("all", check.gain)]
    }
    return {
        "says": in_words(check, geometry),
        "changed": check.changed,
        "amplitude": trial.amplitude,
        "aberrations_rad": list(aberrations_rad(check)),
        "defocus_m": defocus_m(check, geometry) if geometry.propagation == "far" else None,
        "powers": None if powers is None else list(powers),
        "centre_px": list(trial.centre_px),
        "scale": trial.scale,
        "orientation": str(trial.orientation),
        "by_network": check.network is not None,
        "refined": check.refined,
        "gains": gains if check.changed else {},
        "seconds": check.seconds,
    }


def defocus_m(check: CheckIn, geometry: Geometry) -> float:
    """Compute by how much the sample is further downstream of the focus than was assumed, metres (far field).

    Parameters
    ----------
    check : CheckIn
        What was found.
    geometry : Geometry
        Of the scan.
    """
    return _defocus_m(aberrations_rad(check)[0], check, geometry)


def aberrations_rad(check: CheckIn) -> tuple[float, ...]:
    """Sum up by how much aberrations were changed, by a network and after it: as those of a `Trial`, radians.

    Parameters
    ----------
    check : CheckIn
        What was found.
    """
    after = check.trial.aberrations_rad
    return after if check.network is None else tuple(np.add(check.network.aberrations_rad, after).tolist())


def _defocus_m(rms_rad: float, check: CheckIn, geometry: Geometry) -> float:
    curvature = rms_rad * check.defocus_curvature
    return -curvature * geometry.wavelength_m / (math.pi * pupil_step(geometry) ** 2)


def _change(check: CheckIn, name: str, geometry: Geometry | None) -> str:
    if name == "scale":
        error = check.scale_standard_error
        sure = f"{abs(check.trial.scale - 1) / max(error, 1e-30):.0f} standard errors of the refined positions"
        return f"{_what(check, name, geometry)} ({sure})"
    return f"{_what(check, name, geometry)} ({_how_much(check.gains[name])})"


def _what(check: CheckIn, name: str, geometry: Geometry | None) -> str:
    trial = check.trial
    if name == "network":
        return _by_network(check, geometry)
    if name in GROUPS:
        turn = math.hypot(*(trial.aberrations_rad[k] for k in GROUPS[name]))
        return f"{name} of {turn:.2f} rad rms added" if name != "defocus" else _defocus(trial, check, geometry)
    if name == "amplitude":
        return "the mean frame's amplitude in place of the assumed one"
    if name == "powers":
        return _powers(trial)
    if name == "centre":
        return f"the beam's centre lies {trial.centre_px[0]:+d} rows and {trial.centre_px[1]:+d} columns off the middle"
    if name == "scale":
        return (
            f"distances between positions times {trial.scale:.3f} (or the sample's pixel divided by it: "
            "look at distance and energy)"
        )
    if name == "orientation":
        return f"positions with {trial.orientation}"
    return "all modes refined freely with an object"


def _defocus(trial: Trial, check: CheckIn, geometry: Geometry | None) -> str:
    size = f"defocus moved by {trial.aberrations_rad[0]:+.2f} rad rms"
    if geometry is None or geometry.propagation != "far":
        return size
    return f"{size}, {1e6 * _defocus_m(trial.aberrations_rad[0], check, geometry):+.3g} um"


def _powers(trial: Trial) -> str:
    return "powers of the modes " + " / ".join(f"{share:.2f}" for share in trial.powers or ())


def _by_network(check: CheckIn, geometry: Geometry | None) -> str:
    trial = check.network or Trial()
    parts = [_powers(trial)] if trial.powers else []
    if any(trial.aberrations_rad):
        others = math.hypot(*trial.aberrations_rad[1:])
        parts = [_defocus(trial, check, geometry), f"other aberrations of {others:.2f} rad rms", *parts]
    return "the probe that the network found" + (f", with {', '.join(parts)}" if parts else "")


def _how_much(gain: Gain) -> str:
    return f"{gain.factor:.2f} times better, {gain.in_errors:.0f} standard errors"


def _which_side(check: CheckIn) -> str:
    if check.other_side is None:
        return ""
    sure = "surely" if check.other_side.exceeds(0.0) else "not surely"
    return (
        f" The sample is {sure} on this side of the focus: the other side explains unseen frames "
        f"{check.other_side.factor:.2f} times worse ({check.other_side.in_errors:.1f} standard errors)."
    )
