// Settings: the tokens generated, as a plot by day and as a table by model.

import { get } from "./api.js";
import { h, svg } from "./dom.js";
import { number } from "./format.js";
import { speed } from "./speed.js";

const DAYS = 30;
const SERIES = 5; // models with a colour of their own; all others share one
const WIDTH = innerWidth < 820 ? 360 : 600;
const [HEIGHT, LEFT, BOTTOM, TOP] = [200, 44, 22, 8];

export async function show(place) {
  const { usage: rows, changes } = await get("/usage");
  const usage = rows.map((row) => ({ ...row, model: row.model || "Unknown model" })); // of imported answers
  const from = day(DAYS - 1);
  const recent = usage.filter((row) => row.day >= from);
  if (!usage.length) return place.append(h("p", { class: "faint" }, "There are no answers yet."));
  const models = totals(usage);
  place.append(
    h("h3", {}, `Tokens generated in the last ${DAYS} days`),
    plot(recent, models.map(({ model }) => model)),
    legend(models),
    ...speed({ usage, changes }, models.map(({ model }) => model)),
    h("h3", {}, "Total"),
    h("div", { class: "table", role: "region", tabindex: "0", "aria-label": "Usage by model" }, table(models)),
    h("p", { class: "faint" }, "Counted on this computer only."));
}

const day = (ago) => new Date(Date.now() - ago * 86_400_000).toISOString().slice(0, 10);

/** One row for each model, the most used first. */
function totals(usage) {
  const found = new Map();
  for (const { model, answers, prompt_tokens, completion_tokens, tokens_per_second } of usage) {
    const sum = found.get(model) ?? { model, answers: 0, read: 0, written: 0, timed: 0, seconds: 0 };
    sum.answers += answers;
    sum.read += prompt_tokens ?? 0;
    sum.written += completion_tokens ?? 0;
    if (tokens_per_second && completion_tokens) {
      sum.timed += completion_tokens;
      sum.seconds += completion_tokens / tokens_per_second;
    }
    found.set(model, sum);
  }
  return [...found.values()].sort((a, b) => b.written - a.written);
}

const series = (models, model) => `series-${Math.min(models.indexOf(model), SERIES)}`;

function plot(usage, models) {
  const days = Array.from({ length: DAYS }, (_, index) => day(DAYS - 1 - index));
  const sums = days.map((date) => usage.filter((row) => row.day === date).reduce((sum, row) => sum + (row.completion_tokens ?? 0), 0));
  const top = niceCeiling(Math.max(...sums, 1));
  const y = (tokens) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - tokens / top);
  const step = (WIDTH - LEFT) / DAYS;
  const marks = [0, top / 2, top].map((value) => [
    svg("line", { x1: LEFT, x2: WIDTH, y1: y(value), y2: y(value), class: "grid" }),
    svg("text", { x: LEFT - 8, y: y(value) + 4, "text-anchor": "end" }, short(value)),
  ]);
  const bars = days.map((date, index) => {
    let below = 0;
    return usage.filter((row) => row.day === date).sort((a, b) => models.indexOf(a.model) - models.indexOf(b.model)).map((row) => {
      const tokens = row.completion_tokens ?? 0;
      const bar = svg("rect", {
        x: LEFT + index * step + 2, y: y(below + tokens), width: step - 4, height: Math.max(0, y(below) - y(below + tokens)),
        class: series(models, row.model),
      }, svg("title", {}, `${date}, ${row.model}: ${number(tokens)} tokens in ${number(row.answers)} answers`));
      below += tokens;
      return bar;
    });
  });
  const dates = [0, 10, 20, DAYS - 1].map((index) => svg("text", {
    x: LEFT + (index === DAYS - 1 ? DAYS : index + 0.5) * step, y: HEIGHT - 4, "text-anchor": index === DAYS - 1 ? "end" : "middle",
  },
    new Date(`${days[index]}T12:00:00Z`).toLocaleDateString(undefined, { day: "numeric", month: "short" })));
  const total = sums.reduce((sum, value) => sum + value, 0);
  const label = `${number(total)} tokens generated in the last ${DAYS} days`;
  return svg("svg", { class: "plot", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label },
    ...marks.flat(), ...bars.flat(), ...dates);
}

/** The smallest of 1, 2 or 5 times a power of ten that is not below the value. */
function niceCeiling(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= value);
}

const short = (value) => value.toLocaleString(undefined, { notation: "compact" });

function legend(models) {
  const named = models.slice(0, SERIES).map(({ model }, index) => h("li", {}, h("span", { class: `key series-${index}` }), model));
  const rest = models.length > SERIES && h("li", {}, h("span", { class: `key series-${SERIES}` }), "Others");
  return h("ul", { class: "legend" }, named, rest);
}

function table(models) {
  const head = ["Model", "Answers", "Tokens read", "Tokens written", "tok/s"];
  const row = ({ model, answers, read, written, timed, seconds }) =>
    [model, number(answers), short(read), short(written), seconds ? number(timed / seconds, 1) : "–"];
  const cells = (tag, texts) => h("tr", {}, texts.map((text, index) =>
    h(tag, { align: index ? "right" : null, scope: tag === "th" ? "col" : null }, text)));
  return h("table", {}, h("thead", {}, cells("th", head)), h("tbody", {}, models.map((model) => cells("td", row(model)))));
}
