// Settings, usage: the speed of each model and the time to its first token, by day, and lasting changes.

import { h, svg } from "./dom.js";
import { number } from "./format.js";

const DAYS = 90;
const MODELS = 5; // with a colour of their own
const WIDTH = innerWidth < 820 ? 360 : 600;
const [HEIGHT, LEFT, RIGHT, BOTTOM, TOP] = [160, 44, 8, 22, 8];

/** `models`: their names, the most used first. */
export function speed({ usage, changes }, models) {
  const from = new Date(Date.now() - (DAYS - 1) * 86_400_000).toISOString().slice(0, 10);
  const recent = usage.filter(({ day, model }) => day >= from && models.indexOf(model) < MODELS).reverse();
  const plots = [
    ["Speed in tokens per second", (row) => row.tokens_per_second, "tok/s"],
    ["Time to the first token in seconds", (row) => row.ttft_ms != null && row.ttft_ms / 1000, "s"],
  ].filter(([, value]) => recent.some(value));
  return [
    ...changes.map((change) => h("p", { class: "advice" }, describe(change))),
    ...plots.flatMap(([title, value, unit]) => [h("h3", {}, `${title}, last ${DAYS} days`), plot(title, recent.filter(value), value, unit, models, from)]),
  ];
}

function describe({ model, since, percent, engine_before: before, engine }) {
  const date = new Date(`${since}T12:00:00Z`).toLocaleDateString(undefined, { day: "numeric", month: "long", year: "numeric" });
  const version = engine && engine !== before ? ` Its engine is ${engine}${before ? `; before, it was ${before}` : ""}.` : "";
  return `${model} is ${Math.abs(percent)} % ${percent < 0 ? "slower" : "faster"} since ${date}.${version}`;
}

function plot(title, rows, value, unit, models, from) {
  const top = Math.max(...rows.map(value)) * 1.1;
  const x = (day) => LEFT + (WIDTH - LEFT - RIGHT) * (Date.parse(day) - Date.parse(from)) / ((DAYS - 1) * 86_400_000);
  const y = (amount) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - amount / top);
  const written = (amount) => number(amount, amount && top < 10 ? 1 : 0);
  const marks = [0, top / 2, top].flatMap((amount) => [
    svg("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(amount), y2: y(amount), class: "grid" }),
    svg("text", { x: LEFT - 8, y: y(amount) + 4, "text-anchor": "end" }, written(amount)),
  ]);
  const lines = models.slice(0, MODELS).flatMap((model, index) => {
    const days = rows.filter((row) => row.model === model);
    const line = svg("polyline", { class: `line series-${index}`, points: days.map((row) => `${x(row.day)},${y(value(row))}`).join(" ") });
    const dots = days.map((row) => svg("circle", { class: `series-${index}`, cx: x(row.day), cy: y(value(row)), r: 3 },
      svg("title", {}, `${row.day}, ${model}: ${written(value(row))} ${unit}`)));
    return [line, ...dots];
  });
  const dates = [0, 30, 60].map((after) => {
    const day = new Date(Date.parse(from) + after * 86_400_000);
    return svg("text", { x: x(day.toISOString().slice(0, 10)), y: HEIGHT - 4 }, day.toLocaleDateString(undefined, { day: "numeric", month: "short" }));
  });
  return svg("svg", { class: "plot", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": title }, ...marks, ...lines, ...dates);
}
