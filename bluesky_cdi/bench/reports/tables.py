"""Results of the suites as tables; `reports.quality` has that of `suites.quality`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bluesky_cdi.bench.reports.text import aligned

Found = Mapping[str, Any]
# Steps of a growing scan that are shown.
SHOWN_STEPS = 10
# Runs of a session that are shown.
SHOWN_RUNS = 10


def live(found: Found) -> str:
    """Set the result of `suites.live` out: median errors, and seconds in brackets."""
    settings = found["settings"]
    lines = [["", *next(iter(found["rows"].values()))]]
    for name, row in found["rows"].items():
        cells = [
            [np.median([run[key] for run in runs]) for key in ("complex_nrmse", "seconds")] for runs in row.values()
        ]
        lines.append([name, *(f"{error:.3f} ({seconds:.1f})" for error, seconds in cells)])
    head = f"complex NRMSE, median of {settings['seeds']} seeds, {settings['frames']} frames of 64x64"
    return f"{head} (seconds, {_threads(found)}), by photons\n{aligned(lines)}"


def replay(found: Found) -> str:
    """Set the result of `suites.replay` out: a table for each way, of images at growing numbers of frames."""
    settings = found["settings"]
    head = f"recorded Siemens star, {settings['rate']:g} frames/s, {settings['weights']}, {_threads(found)}"
    return "\n\n".join([head, *(_replayed(name, row, settings["good_nrmse"]) for name, row in found["rows"].items())])


def _replayed(name: str, row: Found, good: float) -> str:
    levels = (50, 90, 95)
    lines = [[name, "frames in", "in the image", "NRMSE", "deviance", f"% inside {'/'.join(map(str, levels))} %"]]
    lines += [
        [
            f"{image['seconds']:.1f} s",
            str(image["arrived"]),
            str(image["frames"]),
            *(_number(image[key], 3) for key in ("complex_nrmse", "deviance")),
            "/".join(f"{100 * image[f'inside_{level}_percent_interval']:.0f}" for level in levels),
        ]
        for image in _growing(row["images"])
    ]
    first = "never" if row["first_good_s"] is None else f"after {row['first_good_s']:.1f} s"
    says = f"\ncheck-in: {row['check_in']['says']}" if row["check_in"] else ""
    return f"{aligned(lines)}\nfirst image with an NRMSE of at most {good:g}: {first}{says}"


def _growing(images: Sequence[Found]) -> list[Found]:
    """Choose the first image, each at half as many frames again, the first with all frames, and the last."""
    chosen: list[Found] = []
    for image in images:
        if not chosen or image["arrived"] >= 1.5 * chosen[-1]["arrived"]:
            chosen.append(image)
    complete = [image for image in images if image["arrived"] == images[-1]["arrived"]]
    return [*chosen, *(image for image in (complete[0], complete[-1]) if image not in chosen)]


def steps(found: Found) -> str:
    """Set the result of `suites.steps` out: seconds at some numbers of frames, then totals and errors."""
    settings, rows = found["settings"], found["rows"]
    costs = [row["steps"] for row in rows.values()]
    shown = np.unique(np.linspace(0, len(costs[0]) - 1, SHOWN_STEPS).round().astype(int))
    lines = [["frames so far", *rows]]
    lines += [[str(costs[0][k][0]), *(f"{each[k][1]:.2f}" for each in costs)] for k in shown]
    lines += [
        ["all steps, s", *(f"{sum(seconds for _, seconds in each):.1f}" for each in costs)],
        ["NRMSE after the last frame", *(f"{row['complex_nrmse_when_measured']:.3f}" for row in rows.values())],
        ["further steps, s", *(f"{row['final_seconds']:.1f}" for row in rows.values())],
        ["NRMSE at the end", *(f"{row['complex_nrmse']:.3f}" for row in rows.values())],
    ]
    shape = next(iter(rows.values()))["object_px"]
    head = (
        f"seconds of a step, {settings['batch']} frames of 64x64 added to it, {_threads(found)}; {settings['frames']} "
    )
    return f"{head}frames on {shape[0]}x{shape[1]} pixels, windows of {settings['window_px']}\n{aligned(lines)}"


def events(found: Found) -> str:
    """Set the result of `suites.events` out: milliseconds of an event in each way."""
    settings, rows = found["settings"], found["rows"]
    bare = rows["bare"]
    lines = [["", "mean", "over bare", "median", "over bare", "longest", "processor", "over bare"]]
    for name, row in {**rows, **found["disturbed"]}.items():
        cells = []
        for key in ("mean_ms", "median_ms"):
            cells += [f"{row[key]:.2f}", f"{row[key] / bare[key]:.2f}"]
        cells += [f"{row['longest_ms']:.0f}", f"{row['cpu_ms']:.2f}", f"{row['cpu_ms'] / bare['cpu_ms']:.2f}"]
        lines.append([name, *cells])
    last = rows["session"]
    head = f"milliseconds from event to event, {settings['events']} events in {settings['rounds']} rasters of each way"
    tail = (
        f"session: all in the catalog and reconstructed {', '.join(f'{s:.0f}' for s in last['settle_s'])} s after the "
        f"rasters; events in the catalog {', '.join(map(str, last['in_catalog']))}, frames in the results "
        f"{', '.join(map(str, last['reconstructed']))}"
    )
    memory = [" / ".join("-" if mib is None else f"{mib:.0f}" for mib in each) for each in last["resident_mib"]]
    held = (
        f"MiB held by the session's processes (own / reconstruction / catalog) after its rasters: {', '.join(memory)}"
    )
    return f"{head}\n{aligned(lines)}\n{tail}\n{held}"


def host(found: Found) -> str:
    """Set the result of `suites.host` out: what was measured, reconstructed, and how long the scan waited."""
    lines = [["raster", "events", "in the catalog", "in the result", "failed before", "longest gap", "median gap"]]
    for row in found["rows"]:
        name = "with faults" if row["faults"] else "without faults"
        catalog = f"{row['in_catalog']}{'' if row['same'] else ', others'}"
        result = f"{row['reconstructed']}" if row["complete"] else f"not complete: {row['error']}"
        gaps = [f"{row[key]:.3f} s" for key in ("longest_gap_s", "median_gap_s")]
        lines.append([name, str(row["events"]), catalog, result, str(row["failed"]), *gaps])
    last = found["rows"][-1]
    kinds = ", ".join(f"{name} {count}" for name, count in last["faults"].items())
    back = f"{np.median(last['back_s']):.1f} s (at most {max(last['back_s']):.1f} s)" if last["back_s"] else "-"
    told = f"faults: {kinds}; {last['up']} found a working reconstruction; it was there again after {back}"
    waited = "" if "longest_write_s" not in last else f"\nlongest wait for the journal: {last['longest_write_s']:.3f} s"
    collections = [f"{row['longest_collection_s']:.3f} s" for row in found["rows"] if "longest_collection_s" in row]
    held = f"\nlongest collection of garbage: {', '.join(collections)}" if collections else ""
    return f"{aligned(lines)}\n{told}{waited}{held}"


def memory(found: Found) -> str:
    """Set the result of `suites.memory` out: MiB after some of the runs, and what is in use."""
    settings, held = found["settings"], found["resident_mib"]
    shown = np.unique(np.linspace(0, len(held) - 1, SHOWN_RUNS).round().astype(int))
    lines = [["MiB held after run", "own", "reconstruction", "catalog"]]
    lines += [[str(k + 1), *(_number(mib, 0) for mib in held[k])] for k in shown]
    used = [
        f"own, after run {each['run']}: {each['objects']} objects and {each['blocks']} blocks in use, "
        f"{_number(each['resident_mib'], 0)} MiB when free memory is given back"
        for each in found["own"]
        if each["run"] in (2, settings["runs"])
    ]
    head = f"{settings['runs']} runs of {settings['events']} events each"
    return "\n".join([head, aligned(lines), *used])


def scan_memory(found: Found) -> str:
    """Set the result of `suites.scan_memory` out: MiB in the course of a scan."""
    settings, scan = found["settings"], found["scan"]
    number = scan["frames"]
    lines = [["frames", "anonymous MiB"], *([str(sent), f"{mib:.0f}"] for sent, mib in scan["course"])]
    head = (
        f"{number} frames, {number / settings['seconds']:.3g} a second for {settings['seconds']:g} s, in "
        f"{scan['took_s']:.0f} s; {scan['reconstructed']} in the image"
    )
    tail = (
        f"after two fifths {scan['from_mib']:.0f} MiB, then {scan['least_mib']:.0f} to {scan['most_mib']:.0f}; mean of "
        f"the last fifth over that of the third: {100 * scan['growth']:+.1f} %; once final {scan['final_mib']:.0f} MiB"
    )
    return f"{head}\n{aligned(lines)}\n{tail}"


def fine_tuning(found: Found) -> str:
    """Set the result of `suites.fine_tuning` out: a table for each scan."""
    return "\n\n".join(_tuned(name, scan) for name, scan in found["scans"].items())


def _tuned(name: str, scan: Found) -> str:
    keys = {
        "given": "given",
        "given_ratio": "ratio",
        "unseen": "unseen",
        "unseen_ratio": "ratio",
        "complex_nrmse": "NRMSE",
        "phase_mae_rad": "rad",
        "seconds": "s",
    }
    digits = {"given": 4, "unseen": 4, "given_ratio": 2, "unseen_ratio": 2, "seconds": 1}
    lines = [[name, *keys.values()]]
    lines += [
        [label, *(_number(row.get(key), digits.get(key, 3)) for key in keys)] for label, row in scan["rows"].items()
    ]
    rows, columns = scan["object_px"]
    head = f"{name}: {scan['given_frames']} frames given, {scan['unseen_frames']} unseen, object {rows}x{columns}"
    return f"{head}\n{aligned(lines)}"


def engines(found: Found) -> str:
    """Set the result of `suites.engines` out."""
    keys = {
        "deviance": ("deviance", 4),
        "complex_nrmse": ("NRMSE", 4),
        "frc": ("FRC", 3),
        "halves": ("halves", 3),
        "seconds_per_epoch": ("s/epoch", 3),
        "peak_memory_mib": ("MiB", 0),
    }
    return _by_case(found["cases"], keys)


def speed(found: Found) -> str:
    """Set the result of `suites.engines.speed` out."""
    cases = {
        name: {label: {**row, "frames_per_s": row["frames"] / row["seconds_per_epoch"]} for label, row in rows.items()}
        for name, rows in found["cases"].items()
    }
    keys = {
        "deviance": ("deviance", 4),
        "seconds_per_epoch": ("s/epoch", 3),
        "frames_per_s": ("frames/s", 0),
        "peak_memory_mib": ("MiB", 0),
    }
    return _by_case(cases, keys)


def _by_case(cases: Found, keys: Mapping[str, tuple[str, int]]) -> str:
    lines = [["", *(title for title, _ in keys.values())]]
    for name, rows in cases.items():
        for label, row in rows.items():
            lines.append([f"{name}, {label}", *(_number(row.get(key), digits) for key, (_, digits) in keys.items())])
    return aligned(lines)


def lsqml(found: Found) -> str:
    """Set the result of `suites.lsqml` out: errors by likelihood, deviances by phase, time to converge."""
    names = list(next(iter(found["likelihood"].values())))
    lines = [["40 epochs, complex NRMSE", *names]]
    lines += [[scan, *(_number(row[name], 4) for name in names)] for scan, row in found["likelihood"].items()]
    phases = [["Siemens star, 100 epochs", "deviance"]]
    phases += [[name, _number(value, 4)] for name, value in found["phases"].items()]
    courses = [["near convergence, unseen frames", "epochs", "s", "deviance"]]
    for scan, by_course in found["courses"].items():
        for course, row in by_course.items():
            cells = (_number(row[key], digits) for key, digits in (("epochs", 0), ("seconds", 1), ("deviance", 3)))
            courses.append([f"{scan}, {course}", *cells])
    return "\n\n".join(aligned(part) for part in (lines, phases, courses) if len(part) > 1)


def single_shot(found: Found) -> str:
    """Set the result of `suites.single_shot` out: medians over the objects, of ``ok`` means."""
    columns = (
        "ok", "frame_ok", "median", "best", "chosen", "average", "floor", "r_factor", "noise_r_factor", "seconds",
    )  # fmt: skip
    lines = [["object", "photons", *(column.replace("_factor", "") for column in columns)]]
    for row in found["rows"]:
        cells = [_middle(column, [run[column] for run in row["runs"]]) for column in columns]
        lines.append([row["object"], f"{row['photons']:.0e}", *(_number(cell, 3) for cell in cells)])
    settings = found["settings"]
    head = (
        f"{settings['starts']} starts, {settings['seeds']} objects a row, {settings['size']} px, {settings['device']}"
    )
    return f"{head}; medians, ok: means\n{aligned(lines)}"


def _middle(column: str, values: Sequence[float | None]) -> float:
    known = [math.nan if value is None else value for value in values]
    return float(np.mean(known) if "ok" in column else np.median(known))


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _threads(found: Found) -> str:
    number = found["machine"]["threads"]
    return "one CPU thread" if number == 1 else f"{number} CPU threads"


def probe(found: Found) -> str:
    """Set the result of `suites.probe` out: assumed, after the check-in, and with the true probe."""
    columns = {
        "overlap": "overlap",
        "one_pass_nrmse": "one pass, NRMSE",
        "one_pass_unseen": "unseen deviance",
        "refined_nrmse": "five iterations more, NRMSE",
        "refined_unseen": "unseen deviance",
        "lsqml_nrmse": "30 LSQ-ML, NRMSE",
        "lsqml_unseen": "unseen deviance",
    }
    lines = [["", "CPU s", *columns.values()]]
    for row in found["rows"]:
        cells = [
            " / ".join(_or_dash(row[label].get(key)) for label in ("assumed", "check-in", "true") if label in row)
            for key in columns
        ]
        lines.append([row["name"], f"{row['cpu_seconds']:.1f}", *cells])
    says = [f"{row['name']}: {row['says']}" for row in found["rows"]]
    settings = found["settings"]
    head = f"{settings['network']}: assumed / after the check-in of {settings['frames']} frames / true probe"
    return "\n".join([head, aligned(lines), "", *says])


def drift(found: Found) -> str:
    """Set the result of `suites.drift` out: alarms of scans with one probe, and how soon a focus that moves is told."""
    settings = found["settings"]
    lines = [["", "frames", "scans", "rang with one probe", "focus moved: told of", "frames later"]]
    for row in found["rows"]:
        late = [each for each in row["late"] if each is not None]
        lines.append(
            [
                row["name"],
                f"{row['frames']}",
                f"{row['scans']}",
                f"{row['false']}",
                f"{len(late)}",
                ", ".join(map(str, late)) or "-",
            ]
        )
    head = f"focus moved by {settings['moved_um']:g} um after half of the frames"
    return "\n".join([head, aligned(lines)])


def faults(found: Found) -> str:
    """Set the result of `suites.faults` out: what was told of scans without a fault, and of each fault."""
    lines = [["without a fault", "checks", "alarms", "told"]]
    for row in found["clean"]:
        lines.append([row["name"], f"{row['checks']}", f"{row['alarms']}", _told(row)])
    parts = [aligned(lines)]
    names = list(dict.fromkeys(row["fault"] for row in found["rows"]))
    cases = list(dict.fromkeys(row["name"] for row in found["rows"]))
    by = {(row["fault"], row["name"]): row for row in found["rows"]}
    lines = [["named / told of / scans", *cases, "told, in all"]]
    for name in names:
        rows = [by[name, case] for case in cases]
        cells = [f"{row['named']} / {row['detected']} / {row['scans']}" for row in rows]
        told: Counter[str] = sum((Counter(row["told"]) for row in rows), Counter())
        lines.append([name, *cells, _told({"told": told})])
    return "\n\n".join([*parts, *([aligned(lines)] if names else [])])


def _told(row: Found) -> str:
    return ", ".join(f"{cause} {n}" for cause, n in sorted(row["told"].items(), key=lambda each: -each[1])) or "-"


def latents(found: Found) -> str:
    """Set the result of `suites.latents` out: how stable latents are, and which frames are told as unusual."""
    lines = [["", "scans", "frames", "moved, embedding", "moved, latents", "frames unusual", "scans unusual"]]
    for row in found["rows"]:
        ratios = (f"{row[key]:.2f}" for key in ("embedding", "latents"))
        shares = (f"{row[key]:.3f}" for key in ("unusual", "scans_unusual"))
        lines.append([row["name"], str(row["scans"]), str(row["frames"]), *ratios, *shares])
    head = (
        f"{found['settings']['weights']}: how far frames move when half of their scan is reconstructed, over how far "
        "they differ;\nshare of frames with p < 0.01, and of scans in which more than a tenth of the frames have"
    )
    return f"{head}\n{aligned(lines)}"


def pretraining(found: Found) -> str:
    """Set the result of `suites.pretraining` out: what linear models tell, and how well hidden frames are predicted."""
    parts = []
    if found["rows"]:
        lines = [["", "values", "kind told", "dose explained", "defocus explained", "ms a frame"]]
        for row in found["rows"]:
            told = (f"{row[key]:.3f}" for key in ("kind", "dose", "defocus"))
            lines.append([row["features"], str(row["values"]), *told, f"{row['ms_a_frame']:.2f}"])
        number = len(found["settings"]["kinds"])
        parts.append(
            f"Linear models of frozen features, on scans that they were not fitted to: share of frames whose kind (of "
            f"{number}) is told, and of the variance explained; a pass of the network takes "
            f"{found['settings']['pass_ms_a_frame']:.2f} ms a frame\n{aligned(lines)}"
        )
    for name, values in found["predicted"].items():
        lines = [["", "deviance a hidden pixel, NRMSE"], *([what, f"{value:.4g}"] for what, value in values.items())]
        parts.append(f"{name}\n{aligned(lines)}")
    return "\n\n".join(parts)


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
