"""What ``bench rate`` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# How documents come, in words.
FORMS = {"rows": "step (a row a document)", "pages": "fly (pages)"}


def documents(found: Mapping[str, Any]) -> str:
    """Write what was replayed as text.

    Parameters
    ----------
    found : Mapping
        Of `bench.suites.rate.rate`.
    """
    settings, machine = found["settings"], found["machine"]
    lines = [
        f"frames of {settings['frame_px']}x{settings['frame_px']}, {settings['weights']}, "
        f"{settings['threads']} thread(s) on {machine['cores']} cores ({machine['devices'][0]})",
        "",
        "assembler alone, frames from an HDF5 file (bitshuffle, LZ4), all documents at once:",
    ]
    for form, each in found["assembler"].items():
        lines.append(
            f"  {FORMS[form]}: {each['frames_per_s']:.0f} frames/s, {each['cpu_us_per_frame']:.0f} µs of a core a frame"
        )
    if ways := found["quality"]:
        lines += _judged(ways)
    if found["by_processor"]:
        lines += _by_processor(found["by_processor"])
    lines += [
        "",
        f"machine's load {settings['load']:.1f} on {machine['cores']} cores at the end; a machine that is busy with "
        "something else is slower below, not above",
        "",
        "live: documents from another process at a rate; latency is from a frame's documents to an image with it;",
        "thinned: an image passed them over, a later one has them; dropped: no room in memory, read again at the end",
        "",
        "| frames/s | documents | frames | imaged at scan's end | all imaged after, s | latency p50, s | p95, s | "
        "thinned | dropped | missing | images | CPU ms a frame |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_row(each) for each in found["replays"]]
    return "\n".join(lines)


def _judged(ways: Mapping[str, Any]) -> list[str]:
    taken = max(len(each["complex_nrmse"]) for each in ways.values())
    lines = [
        "",
        "complex NRMSE after each 50 frames of a scan of 400, all read quickly but the first, or by full steps:",
        "",
        f"| | {' | '.join(str(50 * (k + 1)) for k in range(taken))} | end |",
        "|---" * (taken + 2) + "|",
    ]
    for way, each in ways.items():
        lines.append(f"| {way} | {' | '.join(f'{e:.3f}' for e in each['complex_nrmse'])} | {each['at_the_end']:.3f} |")
    return lines


def _by_processor(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "",
        "images by the clock of the thread that makes them (a core to itself, frames in memory, one thread):",
        "",
        "| frames/s | frames | imaged at scan's end | latency p50, s | p95, s | thinned | images | CPU ms a frame |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in rows:
        latency = f"{_seconds(each['latency_p50_s'])} | {_seconds(each['latency_p95_s'])}"
        lines.append(
            f"| {each['rate']:g} | {each['frames']} | {each['imaged_at_end']} | {latency} | {each['thinned']} | "
            f"{each['images']} | {each['ms_per_frame']:.2f} |"
        )
    return lines


def _row(each: Mapping[str, Any]) -> str:
    numbers = (
        f"{each['rate']:g}",
        FORMS[each["form"]].split(" ")[0],
        each["frames"],
        each["imaged_at_end"],
        _seconds(each["rest_s"]),
        _seconds(each["latency_p50_s"]),
        _seconds(each["latency_p95_s"]),
        each["thinned"],
        each["dropped"],
        each["missing"],
        each["images"],
        f"{each['cpu_ms_per_frame']:.2f}",
    )
    return f"| {' | '.join(map(str, numbers))} |"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def file(found: Mapping[str, Any]) -> str:
    """Write how fast a file was stitched as text.

    Parameters
    ----------
    found : Mapping
        Of `bench.suites.file_rate.file_rate`.
    """
    settings, each, machine = found["settings"], found["file"], found["machine"]
    passes, size = each["frames_per_s"], settings["frame_px"]
    way = "chunks in threads" if each["is_direct"] else "through HDF5"
    alone, spent = each["alone_frames_per_s"], each["stages_us_per_frame"]
    stages = ", ".join(f"{stage} {us:.2f}" for stage, us in spent.items())
    slowest, is_one = each["slowest"], each["limit"] != "together"
    limit = (
        slowest if is_one else "threads that decompress, and that which starts the device's work, take turns in Python"
    )
    lines = [
        f"{each['frames']} frames of {size}x{size} from an HDF5 file to one stitched image of "
        f"{each['object_px'][0]}x{each['object_px'][1]} pixels, {settings['weights']}, on {machine['devices'][0]}",
        f"  file to image: {each['frames_per_s_median']:.0f} frames/s (median of {len(passes)} passes in "
        f"{each['seconds']:.1f} s; slowest {min(passes):.0f}), {each['cpu_us_per_frame']:.0f} µs of a core a frame",
        f"  a frame's stages, µs (reading and decompressing of one of {each['reading_threads']} threads): {stages}",
        f"  reading alone: {alone['reading']:.0f} frames/s, {way}, {each['reading_threads']} threads, "
        f"{each['bytes_per_frame']:.0f} bytes a frame, which the system may still have in memory",
    ]
    if "copying" in alone:
        lines.append(f"  copying alone: {alone['copying']:.0f} frames/s")
    lines += [
        f"  computing alone: {alone['computing']:.0f} frames/s, batches of {settings['batch']}",
        f"  the device computes, or waits for its next kernel, {100 * each['busy_share']:.0f} % of the time; frames "
        f"are waited for {100 * each['waiting_share']:.0f} %",
        f"  what limits: {limit}; {100 * each['frames_per_s_median'] / alone[slowest]:.0f} % of the rate of {slowest} "
        "alone is reached",
        f"  complex NRMSE to the truth, one pass of the network: {each['complex_nrmse']:.3f}",
    ]
    return "\n".join(lines)
