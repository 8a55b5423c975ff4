// An image of the sample that can be moved and enlarged, with what was measured drawn upon it.

import { clear, digits, h, length, put, s } from "./dom.js";

const MOST_ZOOM = 40;
// A click is no drag: the pointer moved by less than this, in pixels of the screen.
const CLICK_PX = 4;

export class ImageView {
  constructor(label, { onselect, onchange } = {}) {
    this.label = label;
    this.grid = null;
    this.marks = {};
    this.onselect = onselect;
    this.image = h("img", { alt: "", draggable: false });
    this.overlay = s("svg", { "aria-hidden": "true", preserveAspectRatio: "none" });
    this.stage = h("div", { class: "stage" }, this.image, this.overlay);
    this.frame = h("div", {
      class: "frame", tabindex: "0", role: "group",
      "aria-label": `${label}. Arrow keys move it, plus and minus change its size, 0 shows all of it.`,
      onkeydown: (event) => this.onKey(event),
    }, this.stage);
    this.caption = h("figcaption", {});
    this.tools = h("div", { class: "tools" },
      h("button", { type: "button", "aria-label": `${label}: larger`, title: "larger (+)", onclick: () => this.pan.zoomIn() }, "+"),
      h("button", { type: "button", "aria-label": `${label}: smaller`, title: "smaller (-)", onclick: () => this.pan.zoomOut() }, "−"),
      h("button", { type: "button", "aria-label": `${label}: all of it`, title: "all of it (0)", onclick: () => this.pan.reset() }, "⤢"));
    this.window = h("div", { class: "window" }, this.frame, this.tools);
    this.element = h("figure", { class: "view" }, this.window, this.caption);
    // The library wants what it moves to be in the document when it begins.
    document.body.append(this.element);
    this.pan = globalThis.Panzoom(this.stage, { maxScale: MOST_ZOOM, minScale: 1, contain: "outside", step: 0.4, cursor: "grab" });
    this.element.remove();
    this.frame.addEventListener("wheel", (event) => this.pan.zoomWithWheel(event), { passive: false });
    this.stage.addEventListener("pointerdown", (event) => { this.pressed = [event.clientX, event.clientY]; });
    this.stage.addEventListener("click", (event) => this.onClick(event));
    if (onchange) this.stage.addEventListener("panzoomchange", () => onchange({ ...this.pan.getPan(), scale: this.pan.getScale() }));
  }

  follow({ x, y, scale }) {
    const mine = { ...this.pan.getPan(), scale: this.pan.getScale() };
    if (Math.abs(mine.x - x) + Math.abs(mine.y - y) + Math.abs(mine.scale - scale) < 1e-3) return;
    this.pan.zoom(scale, { animate: false });
    this.pan.pan(x, y, { animate: false });
  }

  onKey(event) {
    const steps = { ArrowLeft: [20, 0], ArrowRight: [-20, 0], ArrowUp: [0, 20], ArrowDown: [0, -20] };
    if (event.key in steps) this.pan.pan(...steps[event.key], { relative: true });
    else if (event.key === "+" || event.key === "=") this.pan.zoomIn();
    else if (event.key === "-") this.pan.zoomOut();
    else if (event.key === "0") this.pan.reset();
    else return;
    event.preventDefault();
  }

  onClick(event) {
    if (!this.onselect || !this.grid || !this.pressed) return;
    if (Math.hypot(event.clientX - this.pressed[0], event.clientY - this.pressed[1]) > CLICK_PX) return;
    const box = this.stage.getBoundingClientRect();
    const [rows, columns] = this.grid.shape;
    this.onselect(((event.clientY - box.top) / box.height) * rows, ((event.clientX - box.left) / box.width) * columns);
  }

  // Where a place of the stage lies on the image: [row, column], from the upper left corner.
  place(y, x) {
    const { origin_m: origin, pixel_m: pixel } = this.grid;
    return [(y - origin[0]) / pixel + 0.5, (x - origin[1]) / pixel + 0.5];
  }

  setGrid(grid) {
    if (!grid || (this.grid && JSON.stringify(this.grid) === JSON.stringify(grid))) return;
    this.grid = grid;
    const [rows, columns] = grid.shape;
    this.frame.style.aspectRatio = `${columns} / ${rows}`;
    this.window.style.maxWidth = `calc(70vh * ${columns / rows})`;
    this.overlay.setAttribute("viewBox", `0 0 ${columns} ${rows}`);
    this.drawMarks();
  }

  show(picture, alt) {
    const before = this.image.src;
    this.image.src = picture.url;
    this.image.alt = alt;
    this.frame.setAttribute("data-shown", alt);
    put(this.caption, scale(picture));
    if (before.startsWith("blob:") && !this.kept) URL.revokeObjectURL(before);
  }

  // marks: measured, path and next are lists of [y, x] in metres; chosen is one of them.
  setMarks(marks) {
    this.marks = marks;
    this.drawMarks();
  }

  drawMarks() {
    clear(this.overlay);
    if (!this.grid) return;
    const placed = (points) => (points || []).map(([y, x]) => this.place(y, x));
    const line = placed(this.marks.path);
    if (line.length > 1) this.overlay.append(s("polyline", { class: "path", points: line.map(([r, c]) => `${c.toFixed(2)},${r.toFixed(2)}`).join(" ") }));
    const dots = placed(this.marks.measured).map(([r, c]) => `M${c.toFixed(2)} ${r.toFixed(2)}h0`).join("");
    if (dots) this.overlay.append(s("path", { class: "dot rim", d: dots }), s("path", { class: "dot", d: dots }));
    const size = this.grid.shape[1] / 90;
    const crosses = placed(this.marks.next).map(([r, c]) => `M${c - size} ${r - size}L${c + size} ${r + size}M${c - size} ${r + size}L${c + size} ${r - size}`).join("");
    if (crosses) this.overlay.append(s("path", { class: "cross rim", d: crosses }), s("path", { class: "cross", d: crosses }));
    if (this.marks.chosen) {
      const [[r, c]] = placed([this.marks.chosen]);
      for (const name of ["ring rim", "ring"]) this.overlay.append(s("circle", { class: name, cx: c, cy: r, r: this.grid.shape[1] / 45 }));
    }
    this.overlay.append(...scaleBar(this.grid));
  }
}

// The longest of 1, 2, 5, 10, ... that is at most three tenths of the width.
function scaleBar({ shape: [rows, columns], pixel_m: pixel }) {
  const most = 0.3 * columns * pixel;
  const decade = 10 ** Math.floor(Math.log10(most));
  const metres = Math.max(...[1, 2, 5].map((step) => step * decade).filter((each) => each <= most * 1.000001));
  const width = metres / pixel;
  const high = Math.max(rows, columns) / 36;
  const text = s("text", { x: 1.9 * high, y: rows - 2.1 * high, "font-size": high * 1.25, class: "bar-text" }, length(metres, 2));
  return [
    s("rect", { class: "bar-back", x: 0.8 * high, y: rows - 3.7 * high, width: width + 2.2 * high, height: 3 * high, rx: high / 3 }),
    text,
    s("rect", { class: "bar", x: 1.9 * high, y: rows - 1.6 * high, width, height: high / 3 }),
  ];
}

export function scale({ low, high, colours, unit }) {
  if (!colours) return h("p", { class: "scale" }, "Colours: latents 1, 2 and 3 as red, green and blue");
  return h("div", { class: "scale" }, h("span", {}, digits(low)), h("span", { class: `ramp ${colours}`, "aria-hidden": "true" }), h("span", {}, `${digits(high)} ${unit}`));
}
