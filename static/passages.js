// Finding a passage in a text that is written a little differently: other white space, hyphenation, ligatures, case or accents.

const LATIN = /^[ -~\n\r\t]*$/;
const WORD = /[\p{L}\p{N}]/u;
const ELLIPSIS = /\s*(?:\[\s*(?:…|\.\.\.)\s*\]|\(\s*(?:…|\.\.\.)\s*\)|…|\.\.\.)\s*/u;
const LEAST_PIECE = 8; // letters of a part of a quotation between ellipses

/** A text without case, accents and ligatures, as {text, offsets}: `offsets[i]` is where the character `i` stands in the original. Other signs become spaces. */
export function fold(original) {
  if (LATIN.test(original)) return { text: original.toLowerCase().replace(/[^a-z0-9]/g, " "), offsets: null };
  let text = "";
  const offsets = [];
  let at = 0;
  for (const character of original) {
    const folded = character < "\u0080" ? character.toLowerCase() : character.normalize("NFKD").toLowerCase();
    for (const one of folded) {
      if (/\p{M}|\u00ad/u.test(one)) continue;
      const kept = WORD.test(one) ? one : " ";
      text += kept;
      for (let unit = 0; unit < kept.length; unit += 1) offsets.push(at);
    }
    at += character.length;
  }
  return { text, offsets };
}

/** The letters and digits of a text, as {text, offsets}. */
export function letters(original) {
  const folded = fold(original);
  let text = "";
  const offsets = [];
  for (let at = 0; at < folded.text.length; at += 1) {
    if (folded.text[at] === " ") continue;
    text += folded.text[at];
    offsets.push(folded.offsets ? folded.offsets[at] : at);
  }
  return { text, offsets };
}

/** Return the offset after the character of `original` at `at`. */
export const after = (original, at) => at + (original.codePointAt(at) > 0xffff ? 2 : 1);

/** Return where a quotation stands in a text, as [start, end] of each part between ellipses; [] if it does not. */
export function findPassage(original, quotation) {
  const { text, offsets } = letters(original);
  const range = (key, from) => {
    const at = key ? text.indexOf(key, from) : -1;
    return at < 0 ? null : { range: [offsets[at], after(original, offsets[at + key.length - 1])], end: at + key.length };
  };
  const whole = range(letters(quotation).text, 0);
  if (whole) return [whole.range];
  const found = [];
  let from = 0;
  for (const piece of quotation.split(ELLIPSIS)) {
    const key = letters(piece).text;
    const part = key.length >= LEAST_PIECE ? range(key, from) : null;
    if (!part) continue;
    found.push(part.range);
    from = part.end;
  }
  return found;
}

/** Return where the terms of a search stand in a text, as [start, end]. A term is the beginning of a word, or a phrase in quotation marks. */
export function findTerms(original, query) {
  const terms = [...query.matchAll(/"([^"]*)"?|([^\s"]+)/g)].map(([, phrase, word]) => fold(phrase ?? word).text.trim().replace(/ +/g, " "));
  const wanted = [...new Set(terms.filter(Boolean))].sort((one, other) => other.length - one.length);
  if (!wanted.length) return [];
  const { text, offsets } = fold(original);
  const pattern = wanted.map((term) => (/^[\u3005-\u30ff\u3400-\u9fff\uac00-\ud7af]/.test(term) ? "" : "(?<![\\p{L}\\p{N}])") + term.replaceAll(" ", " +"));
  const place = (at) => (offsets ? offsets[at] : at);
  return [...text.matchAll(new RegExp(pattern.join("|"), "gu"))]
    .map(({ 0: found, index }) => [place(index), after(original, place(index + found.length - 1))]);
}
