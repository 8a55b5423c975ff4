// Which view the address names, and what is looked at again while a run is measured.

import { Runs } from "./api.js";
import { CompareView } from "./compare.js";
import { h, put } from "./dom.js";
import { ListView } from "./list.js";
import { redraw } from "./plots.js";
import { RunView } from "./run.js";

const SOON_MS = 150, LIVE_MS = 1000, IDLE_MS = 3000, HIDDEN_MS = 15000;

const runs = new Runs();
const main = document.getElementById("main");
let view = null;
let shown = "";

// Of the raw run: it is there before its result, and stays the same when that comes.
function liveUid() {
  const run = runs.running() || runs.newest();
  return run ? run.raw_uid : null;
}

function make(parts) {
  const [what, ...names] = parts;
  if (what === "run" && names[0]) return new RunView(names[0]);
  if (what === "live") return new RunView(liveUid(), true);
  if (what === "compare") return new CompareView(runs, names[0], names[1]);
  return new ListView(runs);
}

function go() {
  const parts = location.hash.replace(/^#\/?/, "").split("/").map(decodeURIComponent);
  if (view && parts[0] === "compare" && view instanceof CompareView) {
    view.choose(parts[1], parts[2]);
    return;
  }
  if (view) view.close();
  shown = parts[0] || "runs";
  view = make(parts);
  put(main, view.element);
  for (const link of document.querySelectorAll("[data-nav]")) {
    if (link.dataset.nav === shown) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${{ live: "Live", compare: "Compare", run: "Result" }[shown] || "Runs"} · bluesky_cdi`;
}

async function look() {
  let wait = IDLE_MS;
  try {
    const changed = await runs.refresh();
    if (shown === "live" && view.uid !== liveUid()) go();
    else if (changed && view.update) view.update();
    if (view.refresh) await view.refresh();
    if (runs.running()) wait = LIVE_MS;
    if (!runs.whole) wait = SOON_MS;
  } catch (err) {
    if (!("status" in err)) throw err;
  } finally {
    setTimeout(look, document.hidden ? HIDDEN_MS : wait);
  }
}

const THEMES = ["auto", "light", "dark"];
function setTheme(theme) {
  if (theme === "auto") document.documentElement.removeAttribute("data-theme");
  else document.documentElement.setAttribute("data-theme", theme);
  localStorage.setItem("theme", theme);
  button.setAttribute("aria-label", `Colours: ${theme}. Change them.`);
  put(button, h("span", { "aria-hidden": "true" }, `◐ ${theme}`));
  redraw();
}

const button = h("button", {
  type: "button", class: "theme",
  onclick: () => setTheme(THEMES[(THEMES.indexOf(localStorage.getItem("theme") || "auto") + 1) % THEMES.length]),
});
document.querySelector("header nav").append(button);
setTheme(THEMES.includes(localStorage.getItem("theme")) ? localStorage.getItem("theme") : "auto");
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

addEventListener("hashchange", () => {
  go();
  main.focus();
});
// The first answer says what there is; a view of it comes after.
runs.refresh().catch(() => {}).finally(() => {
  go();
  setTimeout(look, SOON_MS);
});
