// What the server is asked. Answers are JSON, or PNG images with what their colours mean in a header.

import { put } from "./dom.js";

export class Failure extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

function say(text) {
  const state = document.getElementById("state");
  if (state.textContent !== text) put(state, text);
}

async function asked(path, options) {
  let answer;
  try {
    answer = await fetch(`/page/api/${path}`, { credentials: "same-origin", ...options });
  } catch (err) {
    if (err.name === "AbortError") throw err;
    say("The server can't be reached. It is asked again.");
    throw new Failure(0, "the server can't be reached");
  }
  if (answer.ok) {
    say("");
    return answer;
  }
  let detail = `the server answered ${answer.status}`;
  try {
    detail = (await answer.json()).detail || detail;
  } catch { /* the body says nothing */ }
  if (answer.status === 401) say("The page needs its key: open the address that `bluesky-cdi serve` printed.");
  if (answer.status === 503) say(detail);
  throw new Failure(answer.status, detail);
}

export async function json(path, options) {
  return (await asked(path, options)).json();
}

export async function picture(path, options) {
  const answer = await asked(path, options);
  return { ...JSON.parse(answer.headers.get("x-picture") || "{}"), url: URL.createObjectURL(await answer.blob()) };
}

export const name = encodeURIComponent;

// The list of runs, kept up to date by what has changed.
export class Runs {
  constructor() {
    this.runs = new Map();
    this.epoch = "";
    this.version = -1;
    this.whole = false;
  }

  async refresh() {
    const found = await json(`runs?epoch=${name(this.epoch)}&after=${this.version}`);
    const changed = found.runs.length > 0 || found.whole !== this.whole || found.epoch !== this.epoch;
    if (found.epoch !== this.epoch) this.runs.clear();
    for (const run of found.runs) {
      if (run.replaced) this.runs.delete(run.uid);
      else this.runs.set(run.uid, run);
    }
    Object.assign(this, { epoch: found.epoch, version: found.version, whole: found.whole });
    return changed;
  }

  newest() {
    return [...this.runs.values()].sort((a, b) => b.time - a.time)[0] || null;
  }

  running() {
    return [...this.runs.values()].filter((run) => run.exit_status === null).sort((a, b) => b.time - a.time)[0] || null;
  }
}
