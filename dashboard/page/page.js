// Asks the server once a second for what is new, and shows it.

import { Charts, colorOf, dashOf, LAGS } from "./charts.js";
import { LIVE, Sections } from "./sections.js";
import { element } from "./values.js";

const POLL_MS = 1000;
const REST = 5; // drawing what comes in takes at most one part of so many
const SILENT_SECONDS = 10; // after which a run that should be under way is said to be silent
const runs = [];
let groups = []; // means over seeds; empty where single runs are shown
let offered = {}; // what can be drawn: words by metric
const chosen = new Set(["rollout/episode_return_mean"]);
const hidden = new Set(); // names in the legend
const control = (id) => document.getElementById(id);
const charts = new Charts(control("charts"));
const sections = new Sections(control("runs"), control("details"));
const banner = control("banner");
let drawn = null; // what the charts show
let nextDrawing = 0; // a time of performance.now()
let asking = 0; // the number of the newest question; answers to others come too late
let timer = null;

function take(reply) {
  offered = reply.metrics;
  reply.runs.forEach((news, index) => {
    runs[index] ??= { index, curves: {}, cursor: "" };
    if (news) merge(runs[index], news);
    const { status } = runs[index];
    const age = LIVE.includes(status?.state) ? reply.now - status.time : 0;
    runs[index].silent = age > SILENT_SECONDS ? age : null;
  });
  const known = new Map(groups.map((group) => [group.cursor, group]));
  groups = (reply.groups ?? []).map((group) => ({ ...known.get(group.cursor), ...group }));
}

function merge(run, { settled, tail, anew, ...rest }) {
  if (anew) run.curves = {};
  for (const metric of Object.keys(settled)) {
    const kept = run.curves[metric]?.settled;
    run.curves[metric] = { settled: kept ? joined(kept, settled[metric]) : settled[metric], tail: tail[metric] };
  }
  Object.assign(run, rest);
}

function joined(kept, more) {
  for (const name of Object.keys(kept)) for (const number of more[name]) kept[name].push(number);
  return kept;
}

// What is drawn, and named in the legend: a group or a run, with its curve and its evaluations by metric.
function series() {
  const labels = [...new Set(groups.map((group) => group.label))];
  groups.forEach((group) => group.runs.forEach((index) => (runs[index].color = colorOf(labels.indexOf(group.label)))));
  if (groups.length) return groups.map((group) => seriesOfGroup(group, labels.indexOf(group.label)));
  runs.forEach((run) => (run.color = colorOf(run.index)));
  return runs.map(seriesOfRun);
}

function seriesOfGroup({ env, label, runs: members, curves }, index) {
  const count = members.length === 1 ? runs[members[0]].name : `${members.length} runs`;
  const newest = Object.fromEntries(Object.entries(curves).map(([metric, { values }]) => [metric, values.at(-1)]));
  const lags = members.map((member) => runs[member].lags).reduce(added, []);
  return { name: label || "all", about: count, env, curves, newest, lags, color: colorOf(index), dash: dashOf(index) };
}

const added = (sums, lags) => Array.from({ length: Math.max(sums.length, lags.length) }, (_, lag) => (sums[lag] ?? 0) + (lags[lag] ?? 0));

function seriesOfRun(run) {
  const curves = {};
  for (const [metric, { settled, tail }] of Object.entries(run.curves)) {
    const field = metric === "rollout/episode_return_mean" ? "return_mean" : metric;
    const found = run.evaluations.filter((point) => point[field] !== undefined);
    const evaluations = { x: found.map((point) => point[control("axis").value]), values: found.map((point) => point[field]) };
    if (field === "return_mean") evaluations.std = found.map((point) => point.return_std ?? 0);
    const all = (name) => settled[name].concat(tail[name]);
    curves[metric] = { x: all(control("axis").value), values: all("values"), evaluations };
  }
  const { name, newest, lags, color, index } = run;
  return { name, about: "", env: String(run.settings.env ?? ""), curves, newest, lags, color, dash: dashOf(index) };
}

function show() {
  control("views").hidden = runs.length < 2;
  const all = series();
  title();
  offer();
  legend(all);
  sections.show(runs);
  const view = { axis: control("axis").value, smooth: control("smooth").valueAsNumber, log: control("log").checked };
  // Drawing is what costs: only when there is something new, and with rests.
  const cursors = [runs.map((run) => run.cursor), groups.map((group) => group.cursor)];
  const wanted = JSON.stringify([view, groups.length > 0, [...hidden], [...chosen]]);
  const state = wanted + JSON.stringify(cursors);
  if (state === drawn || (drawn?.startsWith(wanted) && performance.now() < nextDrawing)) return;
  const began = performance.now();
  const metrics = Object.entries({ ...offered, ...LAGS }).filter(([metric]) => chosen.has(metric));
  charts.draw(all.filter((one) => !hidden.has(one.name)), metrics, view, [...new Set(all.map((one) => one.env))]);
  drawn = state;
  nextDrawing = performance.now() + REST * (performance.now() - began);
}

function title() {
  const [only] = runs;
  const text = runs.length === 1 ? only.name : `${runs.length} runs`;
  control("title").textContent = document.title = text;
  const { env, seed, schedule } = only?.settings ?? {};
  const known = [env, seed !== undefined && `seed ${seed}`, schedule].filter(Boolean);
  control("about").textContent = runs.length === 1 ? known.join(", ") : runs.length ? "" : "none has begun yet";
}

// The list of metrics, where there are new ones.
function offer() {
  const box = control("metrics").querySelector("div");
  const wanted = Object.entries({ ...offered, ...LAGS });
  if (box.childElementCount === wanted.length) return;
  box.replaceChildren(...wanted.map(([metric, words]) => checkbox(chosen.has(metric), (on) => {
    if (on) chosen.add(metric);
    else chosen.delete(metric);
    askAnew();
  }, words)));
}

function checkbox(on, changed, ...words) {
  const box = element("input", { type: "checkbox" });
  box.checked = on;
  box.addEventListener("change", () => changed(box.checked));
  return element("label", {}, box, ...words);
}

function legend(all) {
  const box = control("legend");
  const entries = [...new Map(all.map((one) => [one.name, one])).values()];
  const key = JSON.stringify(entries.map((one) => [one.name, one.about, one.color]));
  box.hidden = entries.length < 2;
  if (box.dataset.key === key) return;
  box.dataset.key = key;
  box.replaceChildren(...entries.map(({ name, about, color }) => {
    const swatch = element("span", { class: "swatch" });
    swatch.style.background = color;
    const words = about ? [swatch, name, element("span", { class: "muted" }, about)] : [swatch, name];
    return checkbox(!hidden.has(name), (on) => {
      if (on) hidden.delete(name);
      else hidden.add(name);
      show();
    }, ...words);
  }));
}

function complain(text) {
  banner.hidden = !text;
  banner.textContent = text;
}

// Another choice has other curves: what is known of the present ones is of no use.
function askAnew() {
  for (const run of runs) run.cursor = "";
  groups = [];
  poll();
}

async function poll() {
  clearTimeout(timer);
  const mine = ++asking;
  const question = new URLSearchParams({ view: control("view").value, axis: control("axis").value });
  question.set("cursors", runs.map((run) => run.cursor).join(","));
  question.set("known", groups.map((group) => group.cursor).join(","));
  for (const metric of chosen) question.append("metric", metric);
  let wait = POLL_MS;
  try {
    const answer = await fetch(`data?${question}`);
    if (answer.status === 403) {
      complain("This address is no longer valid. Open the one that the terminal shows, token included.");
    } else if (!answer.ok) {
      complain(`The dashboard answers with an error (${answer.status}); its terminal or log says more.`);
    } else {
      const reply = await answer.json();
      if (mine !== asking) return;
      take(reply);
      complain("");
      show();
      if (!reply.whole) wait = 0;
    }
  } catch (error) {
    if (!(error instanceof TypeError)) throw error; // fetch's word for a server that is gone
    complain("The dashboard has ended. `python launch.py dashboard RUN_DIR` shows the run again.");
  } finally {
    if (mine === asking) timer = setTimeout(poll, wait);
  }
}

for (const id of ["view", "axis"]) control(id).addEventListener("change", askAnew);
for (const id of ["smooth", "log"]) control(id).addEventListener("input", show);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  drawn = null;
  show();
});
poll();
