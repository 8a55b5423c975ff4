// The list of runs: found, sorted, and chosen for a comparison.

import { name } from "./api.js";
import { clear, date, h, newId, put } from "./dom.js";

const ROWS = 100;
const COLUMNS = [
  ["image", "Image", null],
  ["scan_id", "Scan", (run) => run.scan_id],
  ["sample", "Sample", (run) => run.sample],
  ["plan", "Plan", (run) => run.plan_name],
  ["time", "Date", (run) => run.time],
  ["n_frames", "Frames", (run) => run.n_frames],
  ["made_by", "Made by", (run) => run.made_by],
  ["quality", "Quality", (run) => quality(run)[0]],
  ["chosen", "Compare", null],
];
// Best first.
const QUALITIES = ["good", "doubtful", "failed", "not judged", "running", "no result"];

export function quality(run) {
  if (run.exit_status === null && run.verdict === null && !run.complete) return ["running", "running"];
  if (!run.complete) return ["no result", "none"];
  return run.verdict ? [run.verdict, run.verdict] : ["not judged", "none"];
}

// Kept while other views are looked at.
const state = { words: "", quality: "", key: "time", down: true, chosen: [], shown: ROWS };

export class ListView {
  constructor(runs) {
    this.runs = runs;
    this.rows = new Map();
    const ids = ["find", "quality", "sort"].map(newId);
    this.count = h("p", { role: "status", class: "count" });
    this.compare = h("a", { class: "button", href: "#/compare" }, "Compare");
    this.sortBy = h("select", { id: ids[2], onchange: () => this.sort(this.sortBy.value) },
      COLUMNS.filter(([, , value]) => value).map(([key, title]) => h("option", { value: key }, title)));
    this.heads = COLUMNS.map(([key, title, value]) => h("th", { scope: "col", class: `c-${key}` },
      value ? h("button", { type: "button", onclick: () => this.sort(key) }, title) : title));
    this.body = h("tbody", {});
    this.more = h("button", { type: "button", class: "more", onclick: () => { state.shown += ROWS; this.update(); } }, "Show more");
    this.element = h("section", { "aria-labelledby": "runs-title" },
      h("h1", { id: "runs-title" }, "Runs"),
      h("form", { class: "filters", role: "search", onsubmit: (event) => event.preventDefault() },
        h("div", {}, h("label", { for: ids[0] }, "Find"), h("input", {
          id: ids[0], type: "search", placeholder: "scan, sample, plan, uid", value: state.words,
          oninput: (event) => this.filter({ words: event.target.value }),
        })),
        h("div", {}, h("label", { for: ids[1] }, "Quality"), h("select", {
          id: ids[1], onchange: (event) => this.filter({ quality: event.target.value }),
        }, h("option", { value: "" }, "all"), QUALITIES.map((each) => h("option", { value: each, selected: state.quality === each }, each)))),
        h("div", { class: "narrow-only" }, h("label", { for: ids[2] }, "Sort by"), this.sortBy),
        this.compare),
      this.count,
      h("table", { class: "runs" }, h("thead", {}, h("tr", {}, this.heads)), this.body),
      this.more);
    this.update();
  }

  filter(change) {
    Object.assign(state, change, { shown: ROWS });
    this.update();
  }

  sort(key) {
    state.down = state.key === key ? !state.down : key === "time" || key === "n_frames" || key === "scan_id";
    state.key = key;
    this.update();
  }

  found() {
    const words = state.words.toLowerCase().split(/\s+/).filter(Boolean);
    const value = COLUMNS.find(([key]) => key === state.key)[2];
    const order = (run) => (state.key === "quality" ? QUALITIES.indexOf(value(run)) : value(run));
    const text = (run) => [run.uid, run.raw_uid, run.scan_id, run.sample, run.plan_name, run.made_by, date(run.time), quality(run)[0]].join(" ").toLowerCase();
    return [...this.runs.runs.values()]
      .filter((run) => !state.quality || quality(run)[0] === state.quality)
      .filter((run) => words.every((word) => text(run).includes(word)))
      .sort((a, b) => {
        const [x, y] = [order(a), order(b)];
        // What has no value comes last, whichever way.
        if (x === null || x === undefined || y === null || y === undefined) return (x ?? null) === (y ?? null) ? b.time - a.time : (x ?? null) === null ? 1 : -1;
        const sign = typeof x === "string" ? x.localeCompare(y) : x - y;
        return (state.down ? -sign : sign) || b.time - a.time;
      });
  }

  update() {
    const found = this.found();
    const total = this.runs.runs.size;
    const words = found.length === total ? `${total} ${total === 1 ? "run" : "runs"}` : `${found.length} of ${total} runs`;
    put(this.count, this.runs.whole ? words : `${words}; older ones are being read …`);
    this.sortBy.value = state.key;
    COLUMNS.forEach(([key], k) => {
      if (key === state.key) this.heads[k].setAttribute("aria-sort", state.down ? "descending" : "ascending");
      else this.heads[k].removeAttribute("aria-sort");
    });
    const rows = found.slice(0, state.shown).map((run) => this.row(run));
    // Only where something is another row: what is focused stays focused.
    if (rows.length !== this.body.children.length || rows.some((row, k) => this.body.children[k] !== row)) put(this.body, rows);
    this.more.hidden = found.length <= state.shown;
    if (!total && this.runs.whole) put(this.body, h("tr", {}, h("td", { colspan: COLUMNS.length }, "There are no runs yet: what is measured appears here.")));
    this.choose();
  }

  row(run) {
    const kept = this.rows.get(run.uid);
    if (kept && kept.run === run) return kept.row;
    const [words, kind] = quality(run);
    const title = `scan ${run.scan_id ?? "without a number"}`;
    const cells = {
      image: run.has_image
        ? h("img", { src: `/page/api/run/${name(run.uid)}/thumbnail.png`, alt: "", loading: "lazy", width: "64", height: "64", onerror: (event) => event.target.classList.add("absent") })
        : h("span", { class: "no-image", "aria-hidden": "true" }),
      scan_id: h("a", { href: `#/run/${name(run.uid)}` }, run.scan_id ?? "–", h("span", { class: "hidden" }, `: ${title}`)),
      sample: run.sample ?? "–",
      plan: run.plan_name ?? "–",
      time: h("time", { datetime: new Date(run.time * 1000).toISOString() }, date(run.time)),
      n_frames: run.n_frames ?? "–",
      made_by: run.made_by ?? "–",
      quality: h("span", { class: `word ${kind}` }, words),
      chosen: run.complete ? h("input", {
        type: "checkbox", checked: state.chosen.includes(run.uid), "aria-label": `choose ${title}, ${date(run.time)}, to compare`,
        onchange: (event) => this.tick(run.uid, event.target.checked),
      }) : "",
    };
    const row = h("tr", {}, COLUMNS.map(([key, head]) => h("td", { class: `c-${key}`, "data-head": head }, cells[key])));
    this.rows.set(run.uid, { run, row });
    return row;
  }

  tick(uid, on) {
    state.chosen = on ? [...state.chosen, uid].slice(-2) : state.chosen.filter((each) => each !== uid);
    this.choose();
  }

  choose() {
    for (const [uid, { row }] of this.rows) {
      const box = row.querySelector("input");
      if (box) box.checked = state.chosen.includes(uid);
    }
    const two = state.chosen.length === 2;
    this.compare.setAttribute("href", two ? `#/compare/${state.chosen.map(name).join("/")}` : "#/compare");
    put(this.compare, two ? "Compare the two" : "Compare …");
  }

  close() {
    clear(this.body);
  }
}
