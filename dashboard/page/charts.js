// The charts: curves of every run over env-steps or time, and the histogram of policy lags.

import { element, number, percent, value } from "./values.js";

const CHARTS = [
  { metric: "rollout/episode_return_mean", title: "Episode return", evaluated: "return_mean" },
  { metric: "rollout/episode_length_mean", title: "Episode length" },
  { metric: "time/env_steps_per_second", title: "Env-steps/s", fromZero: true },
  { metric: "train/policy_loss", title: "Policy loss" },
  { metric: "train/value_loss", title: "Value loss" },
  { metric: "train/entropy", title: "Entropy" },
  { metric: "train/approx_kl", title: "Approximate KL", fromZero: true },
  { metric: "train/clip_fraction", title: "Clip fraction", fromZero: true, form: percent },
  { metric: "train/explained_variance", title: "Explained variance" },
  { metric: "train/learning_rate", title: "Learning rate", fromZero: true },
  { metric: "time/learner_wait_share", title: "Learner waits for experience", fromZero: true, form: percent },
];
const EPISODE = "episode/"; // What an environment tells of its episodes has a chart as soon as it comes.
const COLORS = ["#3b78e0", "#e0762f", "#219d76", "#c2549e", "#8d6ad6", "#b08a14", "#d14b46", "#3f9dc4"];
const DASHES = ["solid", "dash", "dot", "dashdot"];
const FEW_POINTS = 40; // so few are marked, since a single one makes no line
const TIME_UNITS = [[86400 * 2, "h", 3600], [7200, "min", 60], [0, "s", 1]];

export const colorOf = (index) => COLORS[index % COLORS.length];

const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;"); // Plotly takes some tags for formatting

export class Charts {
  constructor(section) {
    this.lags = { metric: "policy/lag_mean", ...card("Policy lag", "policy/lag_mean") };
    this.cards = CHARTS.map((chart) => ({ ...chart, ...card(chart.title, chart.metric) }));
    section.replaceChildren(...this.cards.map((chart) => chart.root), this.lags.root);
  }

  // A chart for each episode metric that has none yet, behind those of the return and the length.
  addEpisodeMetrics(runs) {
    const known = new Set(this.cards.map((chart) => chart.metric));
    for (const metric of new Set(runs.flatMap((run) => Object.keys(run.curves)))) {
      if (!metric.startsWith(EPISODE) || known.has(metric)) continue;
      const chart = { metric, evaluated: metric, ...wordsOf(metric) };
      const before = this.cards.filter((other) => other.metric.startsWith(EPISODE)).length + 1;
      const made = { ...chart, ...card(chart.title, metric) };
      this.cards[before].root.after(made.root);
      this.cards.splice(before + 1, 0, made);
    }
  }

  // `runs`: as page.js holds them; `axis`: env_steps or seconds.
  draw(runs, axis) {
    this.addEpisodeMetrics(runs);
    const shown = runs.filter((run) => run.shown);
    const unit = unitOf(shown, axis);
    for (const chart of [...this.cards, this.lags]) {
      chart.newest.replaceChildren(...shown.map((run) => newest(run, chart, runs.length > 1)));
    }
    for (const chart of this.cards) {
      const traces = shown.flatMap((run) => [
        curve(run, chart, axis, unit),
        ...(chart.evaluated ? evaluations(run, chart, axis, unit) : []),
      ]);
      const y = { rangemode: chart.fromZero ? "tozero" : "normal", tickformat: chart.form ? ".0%" : "" };
      plot(chart.plot, traces, { title: { text: unit.label }, rangemode: "tozero" }, y, axis);
    }
    const most = Math.max(4, ...shown.map((run) => run.lags.length));
    const x = { title: { text: "versions behind, share of environments" }, range: [-0.5, most - 0.5], dtick: Math.ceil(most / 12) };
    plot(this.lags.plot, shown.map(lagBars), x, { tickformat: ".0%", range: [0, 1] }, "lags");
  }
}

function wordsOf(metric) {
  if (metric === `${EPISODE}is_success`) return { title: "Success rate", fromZero: true, form: percent };
  return { title: metric.slice(EPISODE.length) };
}

function card(title, metric) {
  const newest = element("div", { class: "newest" });
  const plot = element("div", { class: "plot" });
  const root = element("article", { class: "card" }, element("div", { class: "head" }, element("h2", {}, title), newest), plot);
  if (metric) root.dataset.metric = metric;
  return { root, newest, plot };
}

function newest(run, chart, several) {
  const shown = value(run.newest[chart.metric], chart.form ?? number);
  if (several) shown.style.color = run.color;
  return shown;
}

function unitOf(runs, axis) {
  if (axis === "env_steps") return { label: "env-steps", size: 1 };
  const longest = Math.max(0, ...runs.map((run) => run.newest["time/seconds"] ?? 0));
  const [, name, size] = TIME_UNITS.find(([least]) => longest >= least);
  return { label: `training time, ${name}`, size };
}

function curve(run, chart, axis, unit) {
  const none = { env_steps: [], seconds: [], values: [] };
  const { settled, tail } = run.curves[chart.metric] ?? { settled: none, tail: none };
  const y = settled.values.concat(tail.values);
  const few = y.length < FEW_POINTS;
  return {
    type: "scatter",
    mode: few ? "lines+markers" : "lines",
    name: plain(run.name),
    x: settled[axis].concat(tail[axis]).map((x) => (x === null ? null : x / unit.size)),
    y,
    line: { color: run.color, width: 1.6, dash: run.dash },
    marker: { color: run.color, size: 4 },
  };
}

function evaluations(run, chart, axis, unit) {
  const points = run.evaluations.filter((point) => point[chart.evaluated] !== undefined);
  if (points.length === 0) return [];
  const deviations = chart.evaluated === "return_mean" ? points.map((point) => point.return_std ?? 0) : [];
  return [{
    type: "scatter",
    mode: "markers",
    name: `${plain(run.name)}, evaluation`,
    x: points.map((point) => (point[axis] === null ? null : point[axis] / unit.size)),
    y: points.map((point) => point[chart.evaluated]),
    error_y: { type: "data", array: deviations, thickness: 1, width: 2 },
    marker: { color: run.color, size: 8, symbol: "diamond", line: { width: 1, color: css("--card") } },
  }];
}

function lagBars(run) {
  const total = run.lags.reduce((sum, count) => sum + count, 0);
  return {
    type: "bar",
    name: plain(run.name),
    x: run.lags.map((_, lag) => lag),
    y: run.lags.map((count) => count / total),
    customdata: run.lags,
    hovertemplate: "%{y:.2%}",
    marker: { color: run.color },
  };
}

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

export const dashOf = (index) => DASHES[Math.floor(index / COLORS.length) % DASHES.length];

function plot(target, traces, x, y, view) {
  const line = { gridcolor: css("--line"), linecolor: css("--line"), zeroline: false, automargin: true };
  const layout = {
    height: 200,
    margin: { l: 44, r: 8, t: 8, b: 34 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 11, color: css("--muted") },
    hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), font: { color: css("--text") }, namelength: -1 },
    hovermode: "x",
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom", // a finger scrolls the page
    showlegend: false,
    uirevision: view, // keeps what was zoomed into while points come in
    xaxis: { ...line, ...x, title: { ...x.title, standoff: 4, font: { size: 11 } } },
    yaxis: { ...line, exponentformat: "e", minexponent: 5, ...y },
  };
  window.Plotly.react(target, traces, layout, { displayModeBar: false, responsive: true });
}
