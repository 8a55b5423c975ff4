// Frames by their latents, and the chosen one: its diffraction pattern, its fit, and what is told of it.

import { json, name, picture } from "./api.js";
import { digits, h, newId, put } from "./dom.js";
import { scale } from "./image-view.js";
import { Scatter } from "./plots.js";
import { pairs } from "./run-parts.js";

const VIEWS = [["measured", "Measured"], ["fit", "Fit"], ["misfit", "Misfit"]];

export class FramePanel {
  constructor(uid, onchoose) {
    Object.assign(this, { uid, onchoose, frames: null, axes: [0, 1], chosen: null });
    const ids = [newId("frame"), newId("across"), newId("up")];
    this.scatter = new Scatter({ onselect: (index) => this.onchoose(index) });
    this.number = h("input", { type: "number", id: ids[0], step: "1", onchange: () => this.onNumber() });
    this.selects = [0, 1].map((k) => h("select", { id: ids[k + 1], onchange: (event) => this.setAxis(k, Number(event.target.value)) }));
    this.pictures = Object.fromEntries(VIEWS.map(([key, title]) => {
      const image = h("img", { alt: "" });
      const caption = h("figcaption", {}, title);
      return [key, { image, caption, title, element: h("figure", { class: "pattern" }, h("div", { class: "square" }, image), caption) }];
    }));
    this.patterns = h("div", { class: "patterns", hidden: true }, VIEWS.map(([key]) => this.pictures[key].element));
    this.told = h("div", { class: "told" });
    this.model = h("p", { class: "note" });
    this.status = h("p", { role: "status" });
    this.latentPart = h("div", {}, h("div", { class: "filters" },
      h("div", {}, h("label", { for: ids[1] }, "Across"), this.selects[0]), h("div", {}, h("label", { for: ids[2] }, "Up"), this.selects[1])), this.scatter.element);
    this.element = h("section", { class: "panel", hidden: true, "aria-labelledby": `${ids[0]}-title` },
      h("h2", { id: `${ids[0]}-title` }, "Frames"),
      h("p", { class: "note" }, "Choose a frame: by a click in the image or among the latents, or by its number."),
      h("div", { class: "frame-columns" }, this.latentPart,
        h("div", {},
          h("div", { class: "filters" },
            h("button", { type: "button", "aria-label": "frame before", onclick: () => this.move(-1) }, "‹"),
            h("div", {}, h("label", { for: ids[0] }, "Frame"), this.number),
            h("button", { type: "button", "aria-label": "next frame", onclick: () => this.move(1) }, "›")),
          this.status,
          this.patterns, this.model, this.told)));
  }

  set({ frames, result }) {
    if (!frames || !frames.number?.length || this.frames) return;
    this.frames = frames;
    this.element.hidden = false;
    const background = result?.start.source?.settings?.background;
    put(this.model, `The fit: object, probe and the frame's own flux, with ${background === undefined ? "no background" : `a background of ${digits(background)} counts in each pixel`}. `,
      "Not in it: a background that differs from pixel to pixel, and what the detector itself smears. Preprocessing (dark frame, binning, cropping) is done to the measured pattern.");
    this.number.min = String(Math.min(...frames.number.slice(0, 1)));
    this.number.max = String(frames.number[frames.number.length - 1]);
    const k = frames.latents?.[0]?.length || 0;
    this.latentPart.hidden = k < 1;
    this.selects.forEach((select, axis) => put(select, Array.from({ length: k }, (_, i) => h("option", { value: String(i), selected: i === this.axes[axis] }, `latent ${i + 1}`))));
    this.draw();
  }

  draw() {
    if (!this.latentPart.hidden) this.scatter.set(this.frames, this.axes.map((each) => Math.min(each, this.frames.latents[0].length - 1)), this.chosen);
  }

  setAxis(axis, value) {
    this.axes[axis] = value;
    this.draw();
  }

  move(step) {
    const n = this.frames.number.length;
    this.onchoose(this.chosen === null ? 0 : (this.chosen + step + n) % n);
  }

  onNumber() {
    const index = this.frames.number.indexOf(Number(this.number.value));
    if (index >= 0) this.onchoose(index);
    else put(this.status, `The result holds no frame ${this.number.value}.`);
  }

  async choose(index) {
    this.chosen = index;
    this.draw();
    const f = this.frames;
    const number = f.number[index];
    this.number.value = String(number);
    put(this.status, `Frame ${number} is read …`);
    const path = `run/${name(this.uid)}/frame/${number}`;
    try {
      const found = await json(path);
      if (this.chosen !== index) return;
      put(this.told, pairs([
        ["place", `y ${digits(f.y_m[index] * 1e6, 4)} µm, x ${digits(f.x_m[index] * 1e6, 4)} µm`],
        ["counts", `${digits(found.counts)}, at most ${digits(found.brightest)} in a pixel`],
        ["misfit", `${digits(f.residual[index])} (vacuum: ${digits(f.vacuum_residual?.[index])}), deviance per pixel`],
        ["predicted error", `${digits(f.uncertainty_rad[index])} rad`],
        ["novelty", `${digits(f.novelty[index])}${f.novelty_p?.[index] === null || f.novelty_p === undefined ? "" : `; p ${digits(f.novelty_p[index])}`}`],
        ["group", f.cluster && f.cluster[index] >= 0 ? String.fromCharCode(65 + f.cluster[index]) : null],
        ["flux", found.flux === null ? null : `${digits(found.flux)} of the scan's mean`],
      ]));
      const views = VIEWS.filter(([key]) => key === "measured" || found.flux !== null);
      this.patterns.hidden = false;
      for (const [key] of VIEWS) this.pictures[key].element.hidden = !views.some(([each]) => each === key);
      await Promise.all(views.map(([key]) => this.show(key, `${path}/${key}.png`, index, number)));
      put(this.status, "");
    } catch (err) {
      if (!("status" in err)) throw err;
      if (this.chosen === index) put(this.status, err.message);
    }
  }

  async show(key, path, index, number) {
    const found = await picture(path);
    if (this.chosen !== index) {
      URL.revokeObjectURL(found.url);
      return;
    }
    const { image, caption, title } = this.pictures[key];
    if (image.src.startsWith("blob:")) URL.revokeObjectURL(image.src);
    image.src = found.url;
    image.alt = `${title} of frame ${number}`;
    // Patterns are drawn by the logarithm of their counts; what people read are the counts.
    const counts = found.unit.startsWith("log10");
    put(caption, title, scale(counts ? { ...found, high: 10 ** found.high - 1, unit: "counts (log)" } : found));
  }
}
