// How times, numbers and sizes are written.

import { h } from "./dom.js";

/** A time of the API, which is UTC without an offset. */
export const parseTime = (text) => new Date(`${text.slice(0, 23)}Z`);

const daysAgo = (date) => Math.round((new Date().setHours(0, 0, 0, 0) - new Date(date).setHours(0, 0, 0, 0)) / 86_400_000);

const monthAndYear = new Intl.DateTimeFormat(undefined, { month: "long", year: "numeric" }); // made once, because that is slow

/** The heading of the list for a conversation of this time. */
export function dayGroup(date) {
  const days = daysAgo(date);
  if (days <= 0) return "Today";
  if (days === 1) return "Yesterday";
  if (days <= 7) return "Previous 7 days";
  if (days <= 30) return "Previous 30 days";
  return monthAndYear.format(date);
}

/** The time if it is today, else the date. */
export function shortTime(date) {
  if (daysAgo(date) === 0) return date.toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit" });
  const year = date.getFullYear() === new Date().getFullYear() ? undefined : "numeric";
  return date.toLocaleDateString(undefined, { day: "numeric", month: "short", year });
}

export function timeNode(text) {
  const date = parseTime(text);
  return h("time", { datetime: date.toISOString(), title: date.toLocaleString() }, shortTime(date));
}

export const number = (value, digits = 0) =>
  value.toLocaleString(undefined, { minimumFractionDigits: digits, maximumFractionDigits: digits });

/** "1 line", "2 lines". */
export const counted = (count, noun, plural = `${noun}s`) => `${number(count)} ${count === 1 ? noun : plural}`;

/** An estimated number of tokens, with two digits that mean something. */
export const aboutTokens = (count) => `about ${counted(Number(Math.ceil(count).toPrecision(2)), "token")}`;

export function duration(milliseconds) {
  if (milliseconds < 100) return `${number(Math.ceil(milliseconds))} ms`;
  if (milliseconds < 10_000) return `${number(milliseconds / 1000, 1)} s`;
  const whole = Math.round(milliseconds / 1000);
  return whole < 60 ? `${whole} s` : `${Math.floor(whole / 60)} min ${whole % 60} s`;
}

export function fileSize(bytes) {
  if (bytes < 1000) return counted(bytes, "byte");
  const unit = bytes < 1e6 ? ["kB", 1e3] : bytes < 1e9 ? ["MB", 1e6] : ["GB", 1e9];
  return `${number(bytes / unit[1], unit[0] === "GB" ? 1 : 0)} ${unit[0]}`;
}
