// How values become text, and text a part of the page: never as HTML, since names come from outside.

export const DASH = "–";

export function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, text] of Object.entries(attributes)) made.setAttribute(name, text);
  made.append(...children);
  return made;
}

// `shown` as `form` writes it, and as it is for scripts and for the pointer; a dash where it is not known.
export function value(shown, form = number) {
  if (shown === null || shown === undefined) return element("span", { class: "muted" }, DASH);
  return element("data", { value: shown, title: shown }, form(shown).replaceAll("-", "−"));
}

export function number(x) {
  if (x === 0) return "0";
  const size = Math.abs(x);
  if (size < 0.001 || size >= 1e12) return x.toExponential(2);
  const digits = size >= 1000 ? 0 : Math.max(0, 3 - Math.floor(Math.log10(size)));
  return x.toLocaleString("en", { maximumFractionDigits: digits });
}

export const whole = (x) => Math.round(x).toLocaleString("en");

export function percent(x) {
  const digits = x === 0 || x >= 0.1 ? 0 : x < 0.01 ? 2 : 1;
  return `${(100 * x).toFixed(digits)} %`;
}

export const megabytes = (bytes) => `${whole(bytes / 2 ** 20)} MB`;

export function duration(seconds) {
  const s = Math.round(seconds);
  const two = (part) => String(part).padStart(2, "0");
  const [h, m] = [Math.floor(s / 3600), Math.floor(s / 60) % 60];
  return h ? `${h}:${two(m)}:${two(s % 60)}` : `${m}:${two(s % 60)}`;
}

// 22:41:07, and the day if it is another than today.
export function clock(unixSeconds) {
  const [day, time] = new Date(1000 * unixSeconds).toLocaleString("sv").split(" ");
  return day === new Date().toLocaleString("sv").split(" ")[0] ? time : `${day} ${time}`;
}
