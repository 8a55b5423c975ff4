// One run: its image with the scan replayed, what the agent decided, frames by their latents, curves, numbers, files.

import { json, name, picture } from "./api.js";
import { choice, date, digits, duration, h, length, newId, put, tick } from "./dom.js";
import { FramePanel } from "./frame-panel.js";
import { ImageView } from "./image-view.js";
import { Curves } from "./plots.js";
import { decisionText, facts, filesPart, numbersPart, provenancePart } from "./run-parts.js";

const IMAGES = [
  ["phase", "Phase"], ["amplitude", "Amplitude"], ["std_phase_rad", "Error of phase"],
  ["std_amplitude", "Error of amplitude"], ["coverage", "Coverage"], ["latent_map", "Latents"],
  ["probe_amplitude", "Probe, amplitude"], ["probe_phase", "Probe, phase"],
  ["transmission", "Transmission"], ["dark_field", "Dark field"], ["integrated_phase", "Phase, integrated"],
];
// Of the frames alone, when the run is over: each is summed by itself, nothing is reconstructed.
const OF_FRAMES = ["transmission", "dark_field", "integrated_phase"];
const PLAY_MS = 350;
// Which image and which marks a user looks at, kept from run to run.
const kept = { image: "phase", mode: 0, measured: true, path: false, next: true };

export class RunView {
  constructor(uid, live = false) {
    Object.assign(this, { uid, live, data: null, step: null, wanted: "", playing: null, chosen: null });
    this.parts = null;
    this.element = h("section", { class: "run" }, h("h1", {}, live ? "Live" : "Result"), h("p", {}, uid ? "Reading …" : "There are no runs yet: the one that is measured appears here."));
    if (uid) this.load();
  }

  async load() {
    try {
      const data = await json(`run/${name(this.uid)}`);
      if (this.closed) return;
      this.data = data;
      if (!this.parts) this.build();
      this.update();
    } catch (err) {
      if (!("status" in err)) throw err;
      if (!this.parts && !this.closed) put(this.element, h("h1", {}, "This run can't be shown"), h("p", {}, err.message));
    }
  }

  // Asked about every second; a run that is over is read once.
  async refresh() {
    if (this.uid && (!this.data || !this.isOver())) await this.load();
  }

  isOver() {
    const { run, result } = this.data;
    return (!run || run.status !== null) && result !== null && result.status !== null;
  }

  build() {
    const ids = { step: newId("step"), title: newId("title") };
    this.image = new ImageView("Image of the sample", { onselect: (row, column) => this.onImage(row, column) });
    this.slider = h("input", { type: "range", id: ids.step, min: "0", step: "1", oninput: () => this.setStep(Number(this.slider.value)) });
    this.play = h("button", { type: "button", onclick: () => this.togglePlay() }, "Play");
    this.stepText = h("output", { for: ids.step });
    this.decision = h("div", { class: "decision", "aria-live": "off" });
    this.decisions = h("tbody", {});
    this.frames = new FramePanel(this.uid, (index) => this.choose(index));
    this.convergence = new Curves("How the image came about", {
      x: "frames in the image",
      series: [{ label: "misfit", ink: "first" }, { label: "predicted error", ink: "second", scale: "rad" }],
      axes: [{ label: "median deviance per pixel" }, { scale: "rad", side: 1, label: "median error of phase (rad)", grid: { show: false } }],
    });
    this.frc = new Curves("Ring correlation of two halves of the frames", {
      x: "spatial frequency (1/µm)",
      series: [{ label: "correlation", ink: "first" }, { label: "half a bit", ink: "second", dash: [6, 4] }],
      axes: [{ label: "correlation" }],
    });
    this.parts = Object.fromEntries(["head", "facts", "numbers", "files", "provenance", "frcNote", "curvesNote"].map((each) => [each, h("div", { class: each })]));
    this.imageChoice = h("div", {});
    this.modes = h("select", { id: newId("mode"), onchange: () => { kept.mode = Number(this.modes.value); this.showImage(); } });
    this.modePart = h("div", { class: "modes" }, h("label", { for: this.modes.id }, "Mode of the probe"), this.modes);
    this.ticks = h("div", { class: "ticks" },
      tick("frames", kept.measured, (on) => this.mark({ measured: on })),
      tick("path", kept.path, (on) => this.mark({ path: on })),
      tick("next places", kept.next, (on) => this.mark({ next: on })));
    this.replay = h("div", { class: "replay" }, this.play, h("label", { for: ids.step }, "Scan"), this.slider, this.stepText);
    this.decisionPart = h("section", { class: "panel", "aria-labelledby": `${ids.title}-d` },
      h("h2", { id: `${ids.title}-d` }, "Decisions of the agent"), this.decision,
      h("details", {}, h("summary", {}, "All decisions"), h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "All decisions" },
        h("table", { class: "plain" }, h("thead", {}, h("tr", {}, ["", "Reason", "Rule", "Places", "Frames known", "Decided in"].map((each) => h("th", { scope: "col" }, each)))), this.decisions))));
    put(this.element, this.parts.head,
      h("div", { class: "columns" },
        h("section", { class: "panel image-panel", "aria-label": "Image" }, this.imageChoice, this.modePart, this.image.element,
          this.ticks, this.replay),
        h("div", { class: "side" },
          h("section", { class: "panel", "aria-label": "State" }, this.parts.facts), this.decisionPart)),
      this.frames.element,
      h("div", { class: "columns even" },
        h("section", { class: "panel", "aria-label": "Convergence" }, this.convergence.element, this.parts.curvesNote),
        h("section", { class: "panel", "aria-label": "Resolution" }, this.frc.element, this.parts.frcNote)),
      h("div", { class: "columns even" },
        h("section", { class: "panel" }, h("h2", {}, "Numbers"), this.parts.numbers),
        h("section", { class: "panel" }, h("h2", {}, "Files"), this.parts.files, h("h2", {}, "Where it comes from"), this.parts.provenance)));
  }

  update() {
    if (!this.data) return;
    const { run, result, updates, grid, frames, decisions } = this.data;
    const title = result ? result.title : `${run.plan ?? "run"}, scan ${run.scan_id ?? "–"}, ${date(run.time)}`;
    const word = this.isOver() ? result.verdict?.word ?? (result.complete ? "not judged" : "no result") : "running";
    put(this.parts.head, h("h1", {}, this.live && !this.isOver() ? `Live: ${title}` : title),
      h("p", {}, h("span", { class: `word ${word.replace(" ", "-")}` }, word), " ", run?.sample ? `${run.sample}. ` : "",
        result?.complete ? (result.verdict_said || "").replace(/^\w+:?\s*/, "") : ""),
      (result?.causes || []).map((each) => h("p", { class: "cause" }, each)));
    put(this.parts.facts, facts(this.data, this.isOver()));
    const last = updates.n_frames.length - 1;
    // Before the first image the slider stands at the one that comes.
    const following = this.step === null || this.step >= this.last;
    this.last = last;
    if (following) this.step = last;
    this.slider.max = String(Math.max(0, last));
    this.replay.hidden = last < 1;
    this.decisionPart.hidden = decisions.length === 0;
    this.drawDecisions();
    if (grid) this.image.setGrid(grid);
    this.updateChoice();
    this.setStep(Math.max(0, this.step ?? 0));
    this.frames.set(this.data);
    this.drawCurves();
    const once = `${result?.uid} ${result?.status} ${frames !== null} ${last}`;
    if (once === this.once) return;
    this.once = once;
    put(this.parts.numbers, numbersPart(this.data));
    put(this.parts.files, filesPart(this.data));
    put(this.parts.provenance, provenancePart(this.data));
  }

  updateChoice() {
    const { grid, frames, run } = this.data;
    const has = (key) => (key === "latent_map" ? frames?.colour?.length > 0 : !OF_FRAMES.includes(key) || (run && frames?.number?.length > 0));
    const there = IMAGES.filter(([key]) => has(key));
    const key = `${there.length} ${grid?.modes}`;
    if (key === this.choiceKey) return;
    this.choiceKey = key;
    if (!there.some(([each]) => each === kept.image)) kept.image = "phase";
    put(this.imageChoice, choice("Image", there, kept.image, (value) => {
      kept.image = value;
      this.showImage();
    }));
    kept.mode = Math.min(kept.mode, (grid?.modes ?? 1) - 1);
    put(this.modes, Array.from({ length: grid?.modes ?? 1 }, (_, k) => h("option", { value: String(k), selected: k === kept.mode }, String(k + 1))));
  }

  setStep(step) {
    this.step = step;
    this.slider.value = String(step);
    const { updates, decisions } = this.data;
    const n = updates.n_frames[step];
    const said = n === undefined ? "no image yet" : `image ${step + 1} of ${this.last + 1}: ${n} frames`;
    this.slider.setAttribute("aria-valuetext", said);
    put(this.stepText, said);
    const at = this.decisionAt(step);
    put(this.decision, at < 0 ? h("p", {}, "Nothing was decided yet.") : decisionText(decisions[at], at, decisions.length));
    [...this.decisions.children].forEach((row, k) => (k === at ? row.setAttribute("aria-current", "true") : row.removeAttribute("aria-current")));
    this.drawMarks();
    this.showImage();
  }

  // Which decision was in force when an image was made; of the newest image the newest decision.
  decisionAt(step) {
    const { updates, decisions } = this.data;
    if (step >= this.last) return decisions.length - 1;
    const time = updates.time[step];
    return decisions.filter((each) => each.time <= time).length - 1;
  }

  drawDecisions() {
    const { decisions, updates } = this.data;
    if (this.decisions.children.length === decisions.length) return;
    put(this.decisions, decisions.map((each, k) => h("tr", {},
      h("td", {}, h("button", {
        type: "button", "aria-label": `show decision ${k + 1}`,
        onclick: () => this.setStep(Math.max(0, Math.min(this.last, updates.time.findIndex((time) => time >= each.time) + (updates.time.some((time) => time >= each.time) ? 0 : this.last + 1)))),
      }, String(k + 1))),
      h("td", {}, each.reason), h("td", {}, each.acquisition), h("td", {}, each.y_m.length), h("td", {}, each.n_ingested),
      h("td", {}, each.decision_s === null ? "–" : duration(each.decision_s)))));
  }

  mark(change) {
    Object.assign(kept, change);
    this.drawMarks();
  }

  drawMarks() {
    const { measured, updates, frames, decisions } = this.data;
    const isLast = this.step >= this.last;
    const time = updates.time[this.step];
    // Where frames tell no time of this clock, as in a fly scan: as many as are in the image.
    const then = measured.time.length ? measured.time.filter((each) => each <= time).length : updates.n_frames[this.step];
    const n = isLast ? measured.y_m.length : then;
    const points = measured.y_m.slice(0, n).map((y, i) => [y, measured.x_m[i]]);
    const at = this.decisionAt(this.step);
    const over = isLast && this.isOver();
    const next = at >= 0 && !over ? decisions[at].y_m.map((y, i) => [y, decisions[at].x_m[i]]) : [];
    const chosen = frames && this.chosen !== null ? [frames.y_m[this.chosen], frames.x_m[this.chosen]] : null;
    this.image.setMarks(this.isProbe() ? {} : {
      measured: kept.measured ? points : [], path: kept.path ? points : [], next: kept.next ? next : [], chosen,
    });
  }

  isProbe() {
    return kept.image.startsWith("probe");
  }

  async showImage() {
    const { result, grid } = this.data;
    this.modePart.hidden = !(this.isProbe() && (grid?.modes ?? 1) > 1);
    this.ticks.hidden = this.isProbe();
    if (!result || this.last < 0) return;
    const ofAll = kept.image === "latent_map" || OF_FRAMES.includes(kept.image);
    const key = `${result.uid}/image/${kept.image}.png?update=${ofAll ? this.last : this.step}&mode=${this.isProbe() ? kept.mode : 0}`;
    if (key === this.wanted) return;
    this.wanted = key;
    const label = IMAGES.find(([each]) => each === kept.image)[1];
    try {
      const found = await picture(`run/${key.replace(result.uid, name(result.uid))}`);
      if (this.wanted !== key || this.closed) {
        URL.revokeObjectURL(found.url);
        return;
      }
      this.image.setGrid(this.isProbe() ? { ...grid, origin_m: [0, 0], shape: found.shape } : grid);
      this.image.show(found, `${label} of ${result.title}${ofAll ? "" : `, image ${this.step + 1} of ${this.last + 1}`}`);
      this.drawMarks();
    } catch (err) {
      if (!("status" in err)) throw err;
      if (this.wanted === key) put(this.image.caption, h("p", {}, err.message));
      this.wanted = "";
    }
  }

  togglePlay() {
    if (this.playing) {
      clearInterval(this.playing);
      this.playing = null;
    } else {
      if (this.step >= this.last) this.setStep(0);
      this.playing = setInterval(() => {
        if (this.step >= this.last) this.togglePlay();
        else this.setStep(this.step + 1);
      }, PLAY_MS);
    }
    put(this.play, this.playing ? "Pause" : "Play");
  }

  onImage(row, column) {
    const { frames, grid } = this.data;
    if (!frames || this.isProbe()) return;
    const y = grid.origin_m[0] + (row - 0.5) * grid.pixel_m;
    const x = grid.origin_m[1] + (column - 0.5) * grid.pixel_m;
    let [best, least] = [-1, Infinity];
    frames.y_m.forEach((each, i) => {
      const d = Math.hypot(each - y, frames.x_m[i] - x);
      if (d < least) [best, least] = [i, d];
    });
    if (best >= 0) this.choose(best);
  }

  choose(index) {
    this.chosen = index;
    this.frames.choose(index);
    this.drawMarks();
  }

  drawCurves() {
    const { updates, result, grid } = this.data;
    const numbers = (values) => values.map((each) => (Number.isFinite(each) ? each : null));
    // Of several images of as many frames the last one counts: a curve goes to the right.
    const rows = updates.n_frames.map((_, k) => k).filter((k) => updates.n_frames[k] !== updates.n_frames[k + 1]);
    const [misfit, error] = [numbers(updates.median_residual), numbers(updates.median_frame_uncertainty_rad)];
    const key = `${rows.length} ${this.last}`;
    const losses = result?.loss_history;
    this.convergence.element.hidden = rows.length < 2 && !losses;
    put(this.parts.curvesNote, this.convergence.element.hidden ? h("p", {}, this.last < 0 ? "There is no image yet." : "There is one image alone: how it came about was not kept.") : "");
    if (rows.length < 2 && losses && !this.losses) this.drawLosses(losses);
    if (rows.length > 1 && key !== this.curvesKey) {
      this.curvesKey = key;
      this.convergence.set([rows.map((k) => updates.n_frames[k]), rows.map((k) => misfit[k]), rows.map((k) => error[k])],
        `with ${updates.n_frames[this.last]} frames a misfit of ${digits(misfit[this.last])} and an error of ${digits(error[this.last])} rad`);
    }
    const halves = result?.halves;
    this.frc.element.hidden = !halves;
    if (halves && !this.frc.data) this.frc.set([halves.frequency_per_um, halves.correlation, halves.threshold], `resolution ${length(halves.resolution_m)}`);
    put(this.parts.frcNote, halves
      ? h("p", {}, halves.resolution_m === null ? "No ring is above the threshold of half a bit." : `Resolution of two halves of ${halves.n_frames} frames (full period, half a bit): ${length(halves.resolution_m)}${halves.resolution_m < 2.0001 * grid.pixel_m ? ", two pixels: all rings are above the threshold" : ""}${halves.target_m ? `; wanted: ${length(halves.target_m)}` : ""}. What both halves share, as the probe and positions, does not show here.`)
      : [h("h2", {}, "Resolution"), h("p", {}, this.whyNoHalves())]);
  }

  whyNoHalves() {
    const { result } = this.data;
    if (!this.isOver()) return "Two halves of the frames are compared when the run is over.";
    if (result.why_no_halves) return `Two halves of the frames could not be compared: ${result.why_no_halves}.`;
    return result.complete ? "Two halves of the frames were not compared: earlier versions did that only where a scan was given a resolution to stop at." : "Two halves of the frames were not compared: there is no final image.";
  }

  // Of what reconstructed all frames at once: its iterations.
  drawLosses({ iteration, deviance }) {
    this.convergence.close();
    this.losses = new Curves("How the image came about", {
      x: "iteration", series: [{ label: "misfit", ink: "first" }], axes: [{ label: "deviance per pixel" }],
    });
    this.convergence.element.replaceWith(this.losses.element);
    this.convergence = this.losses;
    this.losses.set([iteration, deviance], `${iteration.length} iterations, at the end ${digits(deviance[deviance.length - 1])}`);
  }

  close() {
    this.closed = true;
    if (this.playing) clearInterval(this.playing);
    if (this.convergence) {
      this.convergence.close();
      this.frc.close();
    }
  }
}
