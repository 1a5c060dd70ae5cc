// Asks the server once a second for what is new, and shows it.

import { Charts, colorOf, dashOf } from "./charts.js";
import { Sections } from "./sections.js";
import { element } from "./values.js";

const POLL_MS = 1000;
const runs = [];
const charts = new Charts(document.getElementById("charts"));
const sections = new Sections(document.getElementById("runs"), document.getElementById("details"));
const axis = document.getElementById("axis");
const banner = document.getElementById("banner");
let drawn = null; // what the charts show

function take(replies) {
  replies.forEach((reply, index) => {
    runs[index] ??= { color: colorOf(index), dash: dashOf(index), shown: true, curves: {} };
    const run = runs[index];
    if (reply.anew) run.curves = {};
    for (const metric of Object.keys(reply.settled)) {
      const kept = run.curves[metric]?.settled;
      const settled = !kept ? reply.settled[metric] : joined(kept, reply.settled[metric]);
      run.curves[metric] = { settled, tail: reply.tail[metric] };
    }
    const { settled, tail, ...rest } = reply;
    Object.assign(run, rest);
  });
}

function joined(kept, more) {
  for (const name of Object.keys(kept)) for (const number of more[name]) kept[name].push(number);
  return kept;
}

function show() {
  legend();
  sections.show(runs);
  // Drawing is what costs: only when there is something new.
  const state = JSON.stringify([axis.value, runs.map((run) => [run.cursor, run.newest, run.evaluations.length, run.shown])]);
  if (state !== drawn) charts.draw(runs, axis.value);
  drawn = state;
}

function legend() {
  const box = document.getElementById("legend");
  const [only] = runs;
  const { env, seed, schedule } = only.settings;
  document.getElementById("title").textContent = runs.length > 1 ? `${runs.length} runs` : only.name;
  document.title = runs.length > 1 ? `${runs.length} runs` : only.name;
  if (box.childElementCount) return;
  if (runs.length === 1) {
    const known = [env, seed !== undefined && `seed ${seed}`, schedule].filter(Boolean);
    box.replaceChildren(element("span", { class: "muted" }, known.join(", ")));
    return;
  }
  box.replaceChildren(...runs.map((run) => {
    const shown = element("input", { type: "checkbox", checked: "" });
    shown.addEventListener("change", () => {
      run.shown = shown.checked;
      show();
    });
    const swatch = element("span", { class: "swatch" });
    swatch.style.background = run.color;
    return element("label", {}, shown, swatch, run.name);
  }));
}

function complain(text) {
  banner.hidden = !text;
  banner.textContent = text;
}

async function poll() {
  try {
    const answer = await fetch(`data?cursors=${runs.map((run) => run.cursor).join(",")}`);
    if (answer.status === 403) {
      complain("This address is no longer valid. Open the one that the terminal shows, token included.");
    } else if (!answer.ok) {
      complain(`The dashboard answers with an error (${answer.status}); its terminal or log says more.`);
    } else {
      take(await answer.json());
      complain("");
      show();
    }
  } catch (error) {
    if (!(error instanceof TypeError)) throw error; // fetch's word for a server that is gone
    complain("The dashboard has ended. `python launch.py dashboard RUN_DIR` shows the run again.");
  } finally {
    setTimeout(poll, POLL_MS);
  }
}

axis.addEventListener("change", show);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts.draw(runs, axis.value));
poll();
