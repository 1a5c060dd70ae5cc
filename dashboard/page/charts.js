// The charts: curves over env-steps or time, one for each environment and chosen metric, and histograms of policy lags.

import { element, number, percent, value } from "./values.js";

export const LAGS = { "policy/lag_mean": "policy lag" }; // is drawn as a histogram
const SHARES = ["train/clip_fraction", "time/learner_wait_share", "episode/is_success"];
const FROM_ZERO = [...SHARES, "time/env_steps_per_second", "train/approx_kl", "train/learning_rate"];
// Okabe and Ito's colors, which everybody can tell apart.
const COLORS = ["#0a7cc0", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a8f98"];
const DASHES = ["solid", "dash", "dot", "dashdot"];
const FEW = 6; // so many curves are told apart by their newest values and by their bands
const FEW_POINTS = 40; // so few are marked, since a single one makes no line
const POINTS = 500; // of a mean; smoothing is over so many of them
const UNITS = {
  env_steps: [[1e6, 1e6, "million env-steps"], [1e4, 1e3, "thousand env-steps"], [0, 1, "env-steps"]],
  seconds: [[7200, 3600, "hours of training"], [120, 60, "minutes of training"], [0, 1, "seconds of training"]],
};

export const colorOf = (index) => COLORS[index % COLORS.length];
export const dashOf = (index) => DASHES[Math.floor(index / COLORS.length) % DASHES.length];

const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;"); // Plotly takes some tags for formatting

export class Charts {
  constructor(section) {
    this.section = section;
    this.cards = new Map(); // by metric and environment
  }

  // `series`: as page.js makes them; `metrics`: pairs of a name and words; `envs`: of all series, hidden ones as well.
  draw(series, metrics, view, envs) {
    const wanted = envs.flatMap((env) => metrics.map(([metric, words]) => ({ env, metric, words })));
    const cards = new Map();
    for (const { env, metric, words } of wanted) {
      const key = JSON.stringify([metric, env]);
      const chart = this.cards.get(key) ?? { ...card(metric), env, metric, words };
      chart.title.textContent = envs.length > 1 ? `${env}: ${words}` : words[0].toUpperCase() + words.slice(1);
      cards.set(key, chart);
    }
    if (String([...cards.keys()]) !== String([...this.cards.keys()])) {
      for (const { plot } of this.cards.values()) window.Plotly.purge(plot); // what stays has another size
      this.section.replaceChildren(...[...cards.values()].map((one) => one.root));
      this.section.classList.toggle("one", cards.size === 1);
    }
    this.cards = cards;
    const unit = unitOf(series, view.axis);
    for (const chart of cards.values()) this.drawOne(chart, series.filter((one) => one.env === chart.env), unit, view);
  }

  drawOne({ metric, words, plot: target, newest }, series, unit, view) {
    const form = SHARES.includes(metric) ? percent : number;
    newest.replaceChildren(...(series.length > FEW ? [] : series.map((one) => newestOf(one, metric, form, series.length > 1))));
    if (metric in LAGS) {
      const most = Math.max(4, ...series.map((one) => one.lags.length));
      const x = { title: { text: "versions behind, share of environments" }, range: [-0.5, most - 0.5], dtick: Math.ceil(most / 12) };
      plot(target, series.map(lagBars), x, { tickformat: ".0%", range: [0, 1] }, "lags");
      return;
    }
    const opacity = series.length > FEW ? "12" : "30";
    const traces = [
      ...series.map((one) => curve(one, metric, unit, view.smooth)),
      ...series.flatMap((one) => evaluations(one, metric, unit)),
      ...series.flatMap((one) => band(one, metric, unit, view.smooth, opacity)),
    ];
    const y = {
      title: { text: words },
      type: view.log ? "log" : "linear",
      rangemode: FROM_ZERO.includes(metric) ? "tozero" : "normal",
      tickformat: SHARES.includes(metric) ? ".0%" : "",
    };
    plot(target, traces, { title: { text: unit.words }, rangemode: "tozero" }, y, `${view.axis} ${view.log}`, series.length > FEW);
  }
}

function card(metric) {
  const title = element("h2", {});
  const newest = element("div", { class: "newest" });
  const plot = element("div", { class: "plot" });
  const root = element("article", { class: "card" }, element("div", { class: "head" }, title, newest), plot);
  root.dataset.metric = metric;
  return { root, title, newest, plot };
}

function newestOf(one, metric, form, several) {
  const shown = value(one.newest[metric], form);
  if (several) shown.style.color = one.color;
  return shown;
}

function unitOf(series, axis) {
  const ends = series.flatMap((one) => Object.values(one.curves).map(({ x }) => x.at(-1) ?? 0));
  const most = ends.reduce((a, b) => Math.max(a, b), 0);
  const [, size, words] = UNITS[axis].find(([least]) => most >= least);
  return { size, words, of: (values) => values.map((x) => (x === null ? null : x / size)) };
}

// The moving average over `points` of a mean's points around each, fewer at the ends; what is not known stays so.
export function smoothed(values, points) {
  const width = Math.round((points * values.length) / POINTS);
  if (width < 2) return values;
  const [before, after] = [Math.floor((width - 1) / 2), Math.floor(width / 2)];
  const sums = [0];
  const counts = [0];
  for (const one of values) {
    sums.push(sums.at(-1) + (one ?? 0));
    counts.push(counts.at(-1) + (one === null ? 0 : 1));
  }
  return values.map((one, index) => {
    const [low, high] = [Math.max(0, index - before), Math.min(values.length, index + after + 1)];
    return one === null ? null : (sums[high] - sums[low]) / (counts[high] - counts[low]);
  });
}

const NOTHING = { x: [], values: [], evaluations: { x: [], values: [] } };

function curve(one, metric, unit, smooth) {
  const { x, values } = one.curves[metric] ?? NOTHING;
  return {
    type: "scatter",
    mode: values.length < FEW_POINTS ? "lines+markers" : "lines",
    name: plain(one.name),
    x: unit.of(x),
    y: smoothed(values, smooth),
    line: { color: one.color, width: 1.8, dash: one.dash },
    marker: { color: one.color, size: 4 },
  };
}

function band(one, metric, unit, smooth, opacity) {
  const { x, low, high } = one.curves[metric] ?? NOTHING;
  if (!low || low.every((bound, index) => bound === high[index])) return []; // a single run has none
  const there = unit.of(x);
  return [{
    type: "scatter",
    mode: "lines",
    x: [...there, ...there.toReversed()],
    y: [...smoothed(high, smooth), ...smoothed(low, smooth).toReversed()],
    fill: "toself",
    fillcolor: one.color + opacity,
    line: { width: 0 },
    hoverinfo: "skip",
  }];
}

function evaluations(one, metric, unit) {
  const { x, values, std } = (one.curves[metric] ?? NOTHING).evaluations;
  if (x.length === 0) return [];
  return [{
    type: "scatter",
    mode: "markers",
    name: `${plain(one.name)}, evaluation`,
    x: unit.of(x),
    y: values,
    error_y: { type: "data", array: std ?? [], thickness: 1, width: 2 },
    marker: { color: one.color, size: 8, symbol: "diamond", line: { width: 1, color: css("--card") } },
  }];
}

function lagBars(one) {
  const total = one.lags.reduce((sum, count) => sum + count, 0);
  return {
    type: "bar",
    name: plain(one.name),
    x: one.lags.map((_, lag) => lag),
    y: one.lags.map((count) => count / total),
    customdata: one.lags,
    hovertemplate: "%{y:.2%}",
    marker: { color: one.color },
  };
}

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function plot(target, traces, x, y, view, crowded = false) {
  const line = { gridcolor: css("--line"), linecolor: css("--line"), zeroline: false, automargin: true };
  const layout = {
    height: target.clientHeight,
    margin: { l: 52, r: 8, t: 8, b: 36 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 11, color: css("--muted") },
    hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), font: { color: css("--text") }, namelength: -1 },
    hovermode: crowded ? "closest" : "x",
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom", // a finger scrolls the page
    showlegend: false,
    uirevision: view, // keeps what was zoomed into while points come in
    xaxis: { ...line, ...x, title: { ...x.title, standoff: 4, font: { size: 11 } } },
    yaxis: { ...line, exponentformat: "e", minexponent: 5, ...y, title: { ...y.title, standoff: 6, font: { size: 11 } } },
  };
  window.Plotly.react(target, traces, layout, { displayModeBar: false, responsive: true });
}
