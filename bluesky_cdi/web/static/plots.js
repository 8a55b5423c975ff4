// Curves, drawn by uPlot, and a scatter of frames that can be chosen from.

import { clear, digits, h, put, s } from "./dom.js";

const drawn = new Set();

// Colours as the page's style has them now, light or dark.
function colour(name) {
  const probe = h("span", { class: `ink-${name}` });
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

export class Curves {
  constructor(label, { x, series, axes, height = 240 }) {
    Object.assign(this, { label, x, series, axes, height, data: null, plot: null });
    this.place = h("div", { class: "curves", role: "img", "aria-label": label });
    this.element = h("figure", {}, h("figcaption", {}, label), this.place);
    this.observer = new ResizeObserver(() => this.resize());
    this.observer.observe(this.place);
    drawn.add(this);
  }

  set(data, said) {
    this.data = data;
    if (said) this.place.setAttribute("aria-label", `${this.label}: ${said}`);
    if (this.plot) this.plot.setData(data);
    else this.draw();
  }

  draw() {
    if (!this.data) return;
    if (this.plot) this.plot.destroy();
    clear(this.place);
    const [ink, rule] = [colour("text"), colour("rule")];
    const axis = { stroke: ink, grid: { stroke: rule, width: 1 }, ticks: { stroke: rule, width: 1 }, labelSize: 20, font: "12px system-ui, sans-serif", labelFont: "12px system-ui, sans-serif" };
    this.plot = new globalThis.uPlot({
      width: Math.max(220, this.place.clientWidth), height: this.height,
      cursor: { drag: { x: true, y: false } },
      scales: { x: { time: false } },
      axes: [{ ...axis, label: this.x }, ...this.axes.map((each) => ({ ...axis, size: 60, ...each }))],
      series: [{ label: this.x, value: (_, v) => digits(v) }, ...this.series.map((each) => ({
        width: 1.5, value: (_, v) => digits(v), ...each, stroke: colour(each.ink),
      }))],
    }, this.data, this.place);
  }

  resize() {
    if (this.plot && this.place.clientWidth > 0) this.plot.setSize({ width: this.place.clientWidth, height: this.height });
  }

  close() {
    drawn.delete(this);
    this.observer.disconnect();
    if (this.plot) this.plot.destroy();
  }
}

export function redraw() {
  for (const each of drawn) each.draw();
}

const WIDTH = 420, HEIGHT = 340, LEFT = 58, BELOW = 40, ABOVE = 10, RIGHT = 12;
// More circles than this make a browser slow.
const MOST_DOTS = 4000;

// Frames by two of their latents, each in its colour of the map.
export class Scatter {
  constructor({ onselect }) {
    this.onselect = onselect;
    this.svg = s("svg", {
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "scatter", tabindex: "0", role: "img",
      "aria-label": "Frames by their latents. Left and right arrow choose the frame before and after.",
      onclick: (event) => this.onClick(event),
      onkeydown: (event) => this.onKey(event),
    });
    this.note = h("p", { class: "note" });
    this.element = h("div", {}, this.svg, this.note);
  }

  set(frames, columns, chosen) {
    Object.assign(this, { frames, columns, chosen });
    const values = columns.map((k) => frames.latents.map((row) => row[k] ?? 0));
    this.ends = values.map((each) => {
      const known = each.filter(Number.isFinite);
      const [low, high] = [known.reduce((a, b) => Math.min(a, b), Infinity), known.reduce((a, b) => Math.max(a, b), -Infinity)];
      const room = 0.05 * (high - low) || 0.5;
      return [low - room, high + room];
    });
    this.placed = frames.latents.map((_, i) => [this.across(values[0][i]), this.down(values[1][i])]);
    this.draw();
  }

  across(value) {
    const [low, high] = this.ends[0];
    return LEFT + ((value - low) / (high - low)) * (WIDTH - LEFT - RIGHT);
  }

  down(value) {
    const [low, high] = this.ends[1];
    return HEIGHT - BELOW - ((value - low) / (high - low)) * (HEIGHT - BELOW - ABOVE);
  }

  draw() {
    clear(this.svg);
    const step = Math.ceil(this.placed.length / MOST_DOTS);
    put(this.note, step > 1 ? `One of ${step} frames is drawn.` : "");
    this.svg.append(s("rect", { class: "axes", x: LEFT, y: ABOVE, width: WIDTH - LEFT - RIGHT, height: HEIGHT - BELOW - ABOVE }));
    this.ticks();
    this.placed.forEach(([x, y], i) => {
      if (i % step || !Number.isFinite(x) || !Number.isFinite(y)) return;
      const rgb = (this.frames.colour?.[i] || [0.5, 0.5, 0.5]).map((v) => Math.round(255 * (v ?? 0.5)));
      const dot = s("circle", { class: "frame-dot", cx: x.toFixed(1), cy: y.toFixed(1), r: 4 });
      dot.style.fill = `rgb(${rgb.join(" ")})`;
      this.svg.append(dot);
    });
    const at = this.placed[this.chosen];
    if (at) for (const name of ["ring rim", "ring"]) this.svg.append(s("circle", { class: name, cx: at[0], cy: at[1], r: 8 }));
  }

  ticks() {
    const [x, y] = this.ends;
    const text = (at, words, more) => this.svg.append(s("text", { class: "tick-text", ...at, ...more }, words));
    for (const part of [0.1, 0.5, 0.9]) {
      const [vx, vy] = [x[0] + part * (x[1] - x[0]), y[0] + part * (y[1] - y[0])];
      text({ x: this.across(vx), y: HEIGHT - BELOW + 14 }, digits(vx, 2), { "text-anchor": "middle" });
      text({ x: LEFT - 5, y: this.down(vy) + 4 }, digits(vy, 2), { "text-anchor": "end" });
    }
    text({ x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 6 }, `latent ${this.columns[0] + 1}`, { "text-anchor": "middle" });
    const [ax, ay] = [11, (ABOVE + HEIGHT - BELOW) / 2];
    text({ x: ax, y: ay }, `latent ${this.columns[1] + 1}`, { "text-anchor": "middle", transform: `rotate(-90 ${ax} ${ay})` });
  }

  onClick(event) {
    const box = this.svg.getBoundingClientRect();
    const [x, y] = [((event.clientX - box.left) / box.width) * WIDTH, ((event.clientY - box.top) / box.height) * HEIGHT];
    let [best, least] = [-1, Infinity];
    this.placed.forEach(([px, py], i) => {
      const d = Math.hypot(px - x, py - y);
      if (d < least) [best, least] = [i, d];
    });
    if (best >= 0) this.onselect(best);
  }

  onKey(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const n = this.placed.length;
    this.onselect(((this.chosen ?? (step > 0 ? -1 : 0)) + step + n) % n);
  }
}
