// Everything but the charts: the runs and their newest numbers, where time and samples go, actors, lanes, events.

import { clock, DASH, duration, element, megabytes, number, percent, value, whole } from "./values.js";

export const LIVE = ["starting", "training", "stopping"];
const STATE_CLASSES = { finished: "good", training: "busy", starting: "busy", ready: "busy", working: "good", failed: "bad", lost: "bad", stopped: "warn", stopping: "warn" };
const EVENT_CLASSES = { warning: "warn", actor_lost: "bad", learner_lost: "bad", actor_retired: "bad", checkpoint: "muted", note: "muted" };
const PARTS = [["learning", "#3b78e0"], ["sending", "#8d6ad6"], ["waiting", "#b9c0ca"]];

export class Sections {
  constructor(runs, details) {
    this.boxes = { runs, details };
    this.parts = { runs: [], details: [] };
  }

  show(runs) {
    const [only] = runs;
    if (!only) return;
    const several = runs.length > 1;
    const names = runs.map((run) => [run.name, run.color]);
    const make = () => (several ? runsCard(runs) : runCard(only));
    this.place("runs", [[[names, runs.map((run) => [run.newest, run.status, run.summary, run.evaluations, run.silent])], make]]);
    const actors = only.status?.actors ?? [];
    const differ = differing(runs);
    this.place("details", [
      ...(several ? [[[names, differ], () => differencesCard(runs, differ)]] : []),
      [[names, runs.map((run) => run.status?.shares)], () => timeCard(runs)],
      [[names, runs.map((run) => [run.samples, run.refused])], () => samplesCard(runs)],
      ...(several ? [] : [
        [actors, () => actorsCard(actors)],
        [actors.map((actor) => [actor.name, actor.state, actor.lanes]), () => lanesCard(only, actors)],
        [only.events, () => eventsCard(only.events)],
      ]),
      [[names, differ, only.settings], () => settingsCard(runs, differ)],
    ]);
  }

  // Replaces only what has changed: text that is being selected, or scrolled, stays.
  place(name, wanted) {
    const before = this.parts[name];
    for (const { made } of before.splice(wanted.length)) made.remove();
    this.parts[name] = wanted.map(([content, make], index) => {
      const key = JSON.stringify(content);
      if (before[index]?.key === key) return before[index];
      const made = make();
      const scrolled = before[index]?.made.querySelector(".scroll")?.scrollTop;
      if (index < before.length) before[index].made.replaceWith(made);
      else this.boxes[name].append(made);
      if (scrolled) made.querySelector(".scroll").scrollTop = scrolled;
      return { key, made };
    });
  }
}

const FACTS = {
  "env-steps": ({ newest, status, settings }) => {
    const total = status?.total_steps ?? totalOf(settings);
    return element("span", {}, value(stepsOf({ newest, status }), whole), " of ", value(total, whole));
  },
  "episode return": ({ newest }) => value(newest["rollout/episode_return_mean"]),
  "best evaluation": ({ evaluations }) => value(bestOf(evaluations.map((point) => point.return_mean))),
  "env-steps/s": ({ newest }) => value(newest["time/env_steps_per_second"], whole),
  "training time": ({ newest }) => value(newest["time/seconds"], duration),
  "time left": ({ status }) => value(status?.seconds_left, duration),
  "policy version": ({ newest }) => value(newest.policy_version, whole),
  "memory": ({ status }) => value(memoryOf(status), megabytes),
};

function runCard(run) {
  const { newest, status, summary, settings } = run;
  const total = status?.total_steps ?? totalOf(settings);
  const head = element("div", { class: "head" }, element("h2", {}, run.name), stateOf(run));
  const bar = element("progress", { max: 1, value: total ? Math.min(1, (stepsOf(run) ?? 0) / total) : 0 });
  const list = Object.entries(FACTS).map(([name, shown]) => element("div", {}, element("dt", {}, name), element("dd", {}, shown(run))));
  const card = element("article", { class: "card" }, head, bar, element("dl", {}, ...list));
  if (summary?.error && !LIVE.includes(status?.state)) card.append(element("p", { class: "bad" }, summary.error));
  return card;
}

function runsCard(runs) {
  const header = [text("run"), text("state"), ...Object.keys(FACTS).map(count)];
  const rows = runs.map((run) => [named(run), text(stateOf(run)), ...Object.values(FACTS).map((shown) => count(shown(run)))]);
  return tableCard("Runs", header, rows, "");
}

function named(run) {
  const swatch = element("span", { class: "swatch" });
  swatch.style.background = run.color;
  return { content: element("span", {}, swatch, ` ${run.name}`), kind: "name" };
}

const stepsOf = ({ newest, status }) => status?.env_steps ?? newest.env_steps;

function bestOf(returns) {
  const known = returns.filter(Number.isFinite);
  return known.length ? Math.max(...known) : null;
}

// Rounded up to whole iterations.
function totalOf({ total_steps: steps, num_envs: envs, rollout_length: length }) {
  const iteration = envs * length;
  return iteration ? Math.ceil(steps / iteration) * iteration : null;
}

function stateOf(run) {
  const state = run.status?.state ?? run.summary?.status ?? DASH;
  if (run.silent) return element("span", { class: "state bad" }, `${state}, silent for ${duration(run.silent)}`);
  return element("span", { class: `state ${STATE_CLASSES[state] ?? ""}` }, state);
}

function memoryOf(status) {
  const known = [...Object.values(status?.memory ?? {}), ...(status?.actors ?? []).map((actor) => actor.memory)].filter(Number.isFinite);
  return known.length ? known.reduce((sum, bytes) => sum + bytes, 0) : null;
}

// The names of the settings in which runs differ.
function differing(runs) {
  const names = Object.keys(Object.assign({}, ...runs.map((run) => run.settings)));
  return names.filter((name) => new Set(runs.map((run) => JSON.stringify(run.settings[name]))).size > 1);
}

const setting = (run, name) => text(String(run.settings[name] ?? DASH) || DASH); // an empty list is an empty text

function differencesCard(runs, differ) {
  const rows = differ.length ? runs.map((run) => [named(run), ...differ.map((name) => setting(run, name))]) : [];
  return tableCard("Settings that differ", [text("run"), ...differ.map(text)], rows, "none", "wide differences");
}

// All settings of one run, those in which it differs from others first.
function settingsCard(runs, differ) {
  const rowsOf = (run) => [...differ, ...Object.keys(run.settings).filter((name) => !differ.includes(name))].map((name) => [text(name), setting(run, name)]);
  const tableOf = (run) => tableCard("Settings", [text("setting"), text("value")], rowsOf(run), "not known", "settings");
  const card = tableOf(runs[0]);
  if (runs.length === 1) return card;
  const choice = element("select", { "aria-label": "run" }, ...runs.map((run, index) => element("option", { value: index }, run.name)));
  choice.addEventListener("change", () => card.lastChild.replaceWith(tableOf(runs[Number(choice.value)]).lastChild));
  card.firstChild.append(choice);
  return card;
}

function timeCard(runs) {
  const header = [text("run"), { content: "learner", kind: "bar" }, ...PARTS.map(([name, color]) => {
    const swatch = element("span", { class: "swatch" });
    swatch.style.background = color;
    return count(element("span", {}, swatch, ` ${name}`));
  }), count("acting")];
  const rows = runs.map((run) => {
    const shares = run.status?.shares;
    const bar = element("div", { class: "share" }, ...PARTS.map(([name, color]) => {
      const part = element("span", {});
      part.style.background = color;
      part.style.width = `${100 * (shares?.[name] ?? 0)}%`;
      return part;
    }));
    const numbers = [...PARTS.map(([name]) => name), "acting"].map((name) => count(value(shares?.[name], percent)));
    return [named(run), { content: bar, kind: "bar" }, ...numbers];
  });
  return tableCard("Where time goes", header, rows, "");
}

function samplesCard(runs) {
  const header = ["run", "produced", "trained", "in flight", "dropped", "refused"].map((name, index) => (index ? count(name) : text(name)));
  const rows = runs.map((run) => [
    named(run),
    ...["produced", "trained", "in_flight"].map((name) => count(value(run.samples?.[name], whole))),
    count(reasons(run.samples?.dropped)),
    count(reasons(run.refused)),
  ]);
  return tableCard("Samples, in env-steps; messages refused", header, rows, "");
}

function reasons(counts) {
  if (!counts) return value(null);
  const parts = Object.entries(counts).map(([reason, n]) => element("div", {}, `${reason.replaceAll("_", " ")} `, value(n, whole)));
  return parts.length ? element("div", {}, ...parts) : value(0);
}

function actorsCard(actors) {
  const header = [text("actor"), text("state"), count("lanes"), count("env-steps"), count("env-steps/s"), count("acting"), count("restarts"), count("memory"), count("silent")];
  const rows = actors.map((actor) => [
    text(actor.name),
    text(element("span", { class: STATE_CLASSES[actor.state] ?? "" }, actor.state ?? DASH)),
    count(value(actor.lanes?.length, whole)),
    count(value(actor.env_steps, whole)),
    count(value(actor.env_steps_per_second, whole)),
    count(value(actor.acting, percent)),
    count(value(actor.restarts, whole)),
    count(value(actor.memory, megabytes)),
    count(value(actor.seconds_silent, (seconds) => `${number(Math.round(10 * seconds) / 10)} s`)),
  ]);
  return tableCard("Actors", header, rows, "none known", "wide actors");
}

function lanesCard(run, actors) {
  const { num_envs: envs, lane_size: size } = run.settings;
  const hosts = new Map(actors.flatMap((actor) => (actor.lanes ?? []).map((lane) => [lane, actor])));
  const lanes = Number.isInteger(envs / size) ? [...Array(envs / size).keys()] : [...hosts.keys()].sort((a, b) => a - b);
  const rows = lanes.map((lane) => {
    const host = hosts.get(lane);
    return [
      text(String(lane)),
      text(size ? `${lane * size} – ${(lane + 1) * size - 1}` : DASH),
      text(host?.name ?? DASH),
      text(element("span", { class: STATE_CLASSES[host?.state] ?? "" }, host?.state ?? DASH)),
    ];
  });
  return tableCard("Lanes", [text("lane"), text("environments"), text("actor"), text("its state")], rows, "none known", "lanes");
}

function eventsCard({ count: total, newest }) {
  const rows = newest.toReversed().map((event) => {
    const { time, event: name, text: said, ...rest } = event;
    const kind = element("span", { class: EVENT_CLASSES[name] ?? "" }, String(name ?? DASH).replaceAll("_", " "));
    const words = said ?? Object.entries(rest).map(([field, item]) => `${field} ${JSON.stringify(item)}`).join(", ");
    const moment = Number.isFinite(time) ? clock(time) : DASH;
    return [brief(moment), brief(kind), { content: words || DASH, kind: "text" }];
  });
  const left = total > newest.length ? `Events, the newest ${newest.length} of ${whole(total)}` : "Events";
  return tableCard(left, [text("time"), text("event"), text("what happened")], rows, "none yet", "events");
}

const text = (content) => ({ content, kind: "" });
const brief = (content) => ({ content, kind: "brief" });
const count = (content) => ({ content, kind: "number" });

function tableCard(title, header, rows, empty, kind = "") {
  const cells = (tag, row) => element("tr", {}, ...row.map(({ content, kind }) => element(tag, kind ? { class: kind } : {}, content)));
  const body = rows.length
    ? element("div", { class: "scroll" }, element("table", {}, element("thead", {}, cells("th", header)), element("tbody", {}, ...rows.map((row) => cells("td", row)))))
    : element("div", { class: "muted" }, empty);
  return element("article", { class: `card ${kind}` }, element("div", { class: "head" }, element("h2", {}, title)), body);
}
