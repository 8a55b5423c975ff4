// The parts of a run's page that are words and numbers.

import { name } from "./api.js";
import { date, digits, duration, h, length } from "./dom.js";

export function pairs(rows) {
  return h("dl", { class: "pairs" }, rows.filter(([, value]) => value !== null && value !== undefined && value !== "")
    .map(([key, value]) => h("div", {}, h("dt", {}, key), h("dd", {}, value))));
}

const last = (values) => values[values.length - 1];

// How many frames are where on their way into the image; of a run that goes on, as it was at its newest image.
function onTheWay(pipeline) {
  if (!pipeline) return null;
  const elsewhere = ["waiting", "thinned", "bad", "dark"].filter((each) => pipeline[each]).map((each) => `${pipeline[each]} ${each}`);
  return [`${pipeline.imaged} of ${pipeline.received} that came`, ...elsewhere].join(", ");
}

function latency(pipeline) {
  if (!pipeline || pipeline.latency_p50_s === null) return null;
  return `${duration(pipeline.latency_p50_s)} (half of them), ${duration(pipeline.latency_p95_s)} (95\u00a0%)`;
}

export function facts({ run, result, measured, updates, pipeline }, isOver) {
  const n = measured.y_m.length;
  const inside = last(updates.n_frames);
  const now = Date.now() / 1000;
  return pairs([
    ["scan", run ? `${run.scan_id ?? "–"}, ${run.plan ?? "–"}` : null],
    ["begun", date((run || result).time)],
    ["measured", run && n ? `${n}${run.budget ? ` of at most ${run.budget}` : ""} frames${run.status === null ? `, for ${duration(now - run.time)}` : ""}` : null],
    [isOver ? "rate at the end" : "rate", measured.rate_hz ? `${digits(measured.rate_hz)} frames/s` : null],
    ["in the image", inside === undefined ? "nothing yet" : onTheWay(pipeline) ?? `${inside} frames`],
    ["from frame to image", latency(pipeline)],
    ["last step took", updates.seconds.length ? duration(last(updates.seconds)) : null],
    ["misfit", updates.median_residual.length ? `${digits(last(updates.median_residual))} (median deviance per pixel)` : null],
    ["predicted error", updates.median_frame_uncertainty_rad.length ? `${digits(last(updates.median_frame_uncertainty_rad))} rad (median)` : null],
    ["ended", run?.status ? `${run.status}${run.reason ? `: ${run.reason}` : ""}` : null],
    ["result", result?.status && !result.complete ? `${result.status}${result.reason ? `: ${result.reason}` : ""}` : null],
  ]);
}

export function decisionText(decision, index, total) {
  const n = decision.y_m.length;
  const gain = decision.gain.filter(Number.isFinite);
  return h("div", {},
    h("p", {}, h("strong", {}, `Decision ${index + 1} of ${total}: ${decision.reason}`)),
    h("p", {}, n ? `${n} ${n === 1 ? "place" : "places"} by the rule “${decision.acquisition}”` : `nothing more (“${decision.acquisition}”)`,
      decision.n_ingested ? `, knowing ${decision.n_ingested} frames` : "", decision.n_pending ? ` and waiting for ${decision.n_pending}` : "",
      decision.decision_s === null ? "." : `; decided in ${duration(decision.decision_s)}.`,
      gain.length ? ` Expected gain ${digits(Math.min(...gain))} to ${digits(Math.max(...gain))}.` : ""));
}

// What a verdict rests on, in words: shares as per cent, all others as they are.
const MEASURES = {
  deviance: "deviance per pixel, with the image",
  noise: "deviance of photon noise alone",
  plain: "deviance without an image",
  unexplained: ["left unexplained by the image"],
  falling: ["deviance still falls by, each iteration"],
  off_centre: ["beam off the middle, of the frame's side"],
  modulus: "median modulus where there is light",
  spacing: "distance of neighbours, in widths of the probe",
  photons: "photons of a frame through vacuum",
  missing: ["frames that are not in the image"],
};

function measure([what, value]) {
  const said = MEASURES[what] ?? what.replaceAll("_", " ");
  return Array.isArray(said) ? [said[0], value === null ? null : `${digits(100 * value)}\u00a0%`] : [said, value === null ? null : digits(value)];
}

export function numbersPart({ result, grid, updates, frames }) {
  if (!result) return h("p", {}, "There is no result yet.");
  const measures = result.verdict?.measures || {};
  const intervals = result.uncertainty?.intervals || {};
  const unusual = frames?.novelty_p?.some((p) => p !== null) ? frames.novelty_p.filter((p) => p !== null && p < 0.01).length : null;
  return pairs([
    ["frames", result.n_frames ?? "–"],
    ["object", grid ? `${grid.shape[0]} × ${grid.shape[1]} pixels of ${length(grid.pixel_m)}` : null],
    ["probe", grid ? `${grid.modes} ${grid.modes === 1 ? "mode" : "modes"}` : null],
    ["images", updates.n_frames.length],
    ["time of all steps", updates.seconds.length ? duration(updates.seconds.reduce((a, b) => a + (b || 0), 0)) : null],
    ["errors by", result.uncertainty ? `${result.uncertainty.estimator}${result.uncertainty.calibrated ? ", calibrated" : ", not calibrated"}` : null],
    ["errors checked", result.uncertainty?.check?.says],
    ...Object.entries(intervals).map(([what, by]) => [`intervals of ${what}`, Object.entries(by).map(([level, width]) => `${level} %: ± ${digits(width)} σ`).join(", ")]),
    ["unusual frames", unusual === null ? null : `${unusual} (p < 0.01)`],
    ...Object.entries(measures).map(measure),
  ]);
}

const FORMATS = [
  ["cxi", "CXI", "complex object and probe, mask, positions"],
  ["nexus", "NeXus", "the same, with phase and errors to plot"],
  ["ptychodus", "Ptychodus", "a product file"],
  ["npz", "NPZ", "all arrays, for NumPy"],
  ["tiff", "TIFF", "phase and amplitude, float32, as a ZIP archive"],
  ["png", "PNG", "a figure with a scale bar"],
];

export function filesPart({ result, results }) {
  const others = results.filter((each) => each.uid !== result?.uid);
  return [
    result?.complete
      ? h("ul", { class: "files" }, FORMATS.map(([form, title, what]) => h("li", {}, h("a", { href: `/page/api/run/${name(result.uid)}/file/${form}`, download: true }, title), ` ${what}`)))
      : h("p", {}, "Files can be had when there is a final image."),
    others.length ? h("p", {}, "Other results of this run: ", others.map((each, k) => [k ? ", " : "", h("a", { href: `#/run/${name(each.uid)}` }, `${each.made_by ?? "?"} of ${date(each.time)}`),
      result?.complete ? [" (", h("a", { href: `#/compare/${name(result.uid)}/${name(each.uid)}` }, "compare"), ")"] : ""])) : null,
  ];
}

// Metadata as they are: nested, every value as text.
function tree(value) {
  if (Array.isArray(value) && value.every((each) => each === null || typeof each !== "object")) return value.join(", ") || "none";
  if (value === null || typeof value !== "object") return String(value ?? "none");
  const entries = Object.entries(value);
  if (!entries.length) return "none";
  return h("dl", { class: "tree" }, entries.map(([key, each]) => h("div", {}, h("dt", {}, key), h("dd", {}, tree(each)))));
}

export function provenancePart({ run, result }) {
  const source = result?.start.source || {};
  return [
    result ? pairs([
      ["made by", [source.reconstructor, source.network].filter(Boolean).join(", ")],
      ["weights", source.weights_sha256 ? h("code", {}, source.weights_sha256.slice(0, 16)) : null],
      ["seed", source.seed],
      ["version", result.start.versions?.bluesky_cdi],
      ["result", h("code", {}, result.uid)],
      ["raw run", h("code", {}, result.start.raw_uid)],
      ["goes on from", result.start.continues ? h("a", { href: `#/run/${name(result.start.continues)}` }, "another result") : null],
    ]) : null,
    result ? h("details", {}, h("summary", {}, "All metadata of the result"), tree(result.start)) : null,
    run ? h("details", {}, h("summary", {}, "All metadata of the raw run"), tree(run.start)) : null,
  ];
}
