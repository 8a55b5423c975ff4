// Two results side by side, one upon the other in turn, and their difference.

import { json, name, picture } from "./api.js";
import { choice, date, digits, h, length, newId, put } from "./dom.js";
import { ImageView } from "./image-view.js";
import { pairs } from "./run-parts.js";

const BLINK_MS = 700;
const kept = { quantity: "phase", mode: "side" };

export class CompareView {
  constructor(runs, first, second) {
    Object.assign(this, { runs, uids: [first || "", second || ""], blinking: null, side: "first", shown: "" });
    const ids = [newId("first"), newId("second")];
    this.selects = ids.map((id, k) => h("select", { id, onchange: () => this.onSelect(k) }));
    this.views = {
      first: new ImageView("First result", { onchange: (pan) => this.views.second.follow(pan) }),
      second: new ImageView("Second result", { onchange: (pan) => this.views.first.follow(pan) }),
      one: new ImageView("Both results in turn"),
      difference: new ImageView("Difference"),
    };
    this.titles = { first: h("h2", {}), second: h("h2", {}), one: h("h2", { "aria-live": "off" }), difference: h("h2", {}, "First less second") };
    this.panels = Object.fromEntries(Object.keys(this.views).map((key) => [key, h("section", { class: "panel", "aria-label": this.views[key].label }, this.titles[key], this.views[key].element)]));
    this.swap = h("button", { type: "button", onclick: () => this.turn() }, "Show the other one");
    this.blink = h("button", { type: "button", onclick: () => this.toggleBlink() }, "Blink");
    this.blinkPart = h("div", { class: "filters" }, this.swap, this.blink);
    this.status = h("p", { role: "status" });
    this.numbers = h("section", { class: "panel", hidden: true });
    this.element = h("section", { "aria-labelledby": "compare-title" },
      h("h1", { id: "compare-title" }, "Two results"),
      h("form", { class: "filters", onsubmit: (event) => event.preventDefault() },
        h("div", { class: "wide" }, h("label", { for: ids[0] }, "First"), this.selects[0]),
        h("div", { class: "wide" }, h("label", { for: ids[1] }, "Second"), this.selects[1])),
      h("div", { class: "filters" },
        choice("Image", [["phase", "Phase"], ["amplitude", "Amplitude"]], kept.quantity, (value) => this.set({ quantity: value })),
        choice("View", [["side", "Side by side"], ["blink", "In turn"], ["difference", "Difference"]], kept.mode, (value) => this.set({ mode: value }))),
      this.blinkPart, this.status,
      h("div", { class: "columns even" }, this.panels.first, this.panels.second), this.panels.one, this.panels.difference, this.numbers);
    this.update();
    this.load();
  }

  update() {
    const complete = [...this.runs.runs.values()].filter((run) => run.complete).sort((a, b) => b.time - a.time);
    const key = complete.map((run) => run.uid).join();
    if (key === this.listed) return;
    this.listed = key;
    this.selects.forEach((select, k) => put(select, h("option", { value: "" }, "choose one …"), complete.map((run) => h("option", {
      value: run.uid, selected: run.uid === this.uids[k],
    }, `scan ${run.scan_id ?? "–"}, ${date(run.time)}, ${[run.sample, run.plan_name, run.made_by].filter(Boolean).join(", ")}, ${run.uid.slice(0, 8)}`))));
  }

  onSelect(k) {
    this.uids[k] = this.selects[k].value;
    if (this.uids[0] && this.uids[1]) location.hash = `#/compare/${this.uids.map(name).join("/")}`;
  }

  choose(first, second) {
    this.uids = [first || "", second || ""];
    this.selects.forEach((select, k) => { select.value = this.uids[k]; });
    this.load();
  }

  async load() {
    const [first, second] = this.uids;
    this.found = null;
    this.arrange();
    if (!first || !second) {
      put(this.status, "Choose two results of the same sample.");
      return;
    }
    put(this.status, "They are aligned …");
    try {
      const found = await json(`pair/${name(first)}/${name(second)}`);
      if (this.closed || this.uids[0] !== first || this.uids[1] !== second) return;
      this.found = found;
      put(this.status, "");
      // Results of one run have one title.
      found.names = found.names.map((title, k) => [title, this.runs.runs.get(this.uids[k])?.made_by, this.uids[k].slice(0, 8)].filter(Boolean).join(", "));
      put(this.titles.first, found.names[0]);
      put(this.titles.second, found.names[1]);
      const n = found.numbers;
      put(this.numbers, h("h2", {}, "How far they agree"),
        h("p", { class: "note" }, "The first result without phase ramp, scaled to the second, which is moved upon it; on the area that both have measured."),
        pairs([
          ["complex NRMSE", digits(n.complex_nrmse)], ["phase", `${digits(n.phase_mae_rad)} rad (mean absolute difference)`],
          ["SSIM of phase", digits(n.ssim_phase)], ["SSIM of amplitude", digits(n.ssim_amplitude)],
          ["shift taken out", found.shift_m.map((each) => length(each)).join(" (y), ") + " (x)"],
        ]));
      Object.values(this.views).forEach((view) => view.setGrid(found.grid));
      this.arrange();
      await this.draw();
    } catch (err) {
      if (!("status" in err)) throw err;
      put(this.status, err.message);
    }
  }

  set(change) {
    Object.assign(kept, change);
    this.arrange();
    this.draw();
  }

  arrange() {
    const there = Boolean(this.found);
    this.panels.first.hidden = this.panels.second.hidden = !there || kept.mode !== "side";
    this.panels.one.hidden = this.blinkPart.hidden = !there || kept.mode !== "blink";
    this.panels.difference.hidden = !there || kept.mode !== "difference";
    this.numbers.hidden = !there;
    if (kept.mode !== "blink" && this.blinking) this.toggleBlink();
  }

  async draw() {
    if (!this.found) return;
    const base = `pair/${this.uids.map(name).join("/")}`;
    const key = `${base} ${kept.quantity}`;
    if (this.shown !== key) {
      this.shown = key;
      try {
        const sides = ["first", "second", "difference"];
        const found = await Promise.all(sides.map((side) => picture(`${base}/${side}/${kept.quantity}.png`)));
        if (this.shown !== key) return;
        this.pictures = Object.fromEntries(sides.map((side, k) => [side, found[k]]));
      } catch (err) {
        if (!("status" in err)) throw err;
        this.shown = "";
        put(this.status, err.message);
        return;
      }
      Object.values(this.views).forEach((view) => { view.kept = true; });
      this.views.first.show(this.pictures.first, `${kept.quantity} of ${this.found.names[0]}`);
      this.views.second.show(this.pictures.second, `${kept.quantity} of ${this.found.names[1]}`);
      this.views.difference.show(this.pictures.difference, `difference of ${kept.quantity}`);
    }
    this.turn(this.side);
  }

  turn(side = this.side === "first" ? "second" : "first") {
    this.side = side;
    if (!this.pictures || !this.found) return;
    const title = this.found.names[side === "first" ? 0 : 1];
    put(this.titles.one, `${side === "first" ? "First" : "Second"}: ${title}`);
    this.views.one.show(this.pictures[side], `${kept.quantity} of ${title}`);
  }

  toggleBlink() {
    if (this.blinking) clearInterval(this.blinking);
    this.blinking = this.blinking ? null : setInterval(() => this.turn(), BLINK_MS);
    put(this.blink, this.blinking ? "Stop" : "Blink");
    this.blink.setAttribute("aria-pressed", String(Boolean(this.blinking)));
  }

  close() {
    this.closed = true;
    if (this.blinking) clearInterval(this.blinking);
  }
}
