"""The quotations of an answer, with the words that are looked up. Not those in code."""

import html
import re
from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Container, Iterator
from functools import cache
from itertools import accumulate
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token

from .lookup import DIVISION, HALF_WORD, IS_SPACELESS, LETTER, SPACELESS, Everything, count_units, normalize, words
from .types import Form, Quotation, Quotations

MIN_UNITS = 10  # of a quotation that is looked up: five words, or ten characters of a script without spaces
MIN_PART_UNITS = 6  # of the longest part between ellipses: shorter ones occur by chance
ELLIPSIS_WORDS = 400  # that an ellipsis may leave out, and for each word of the shorter part beside it:
ELLIPSIS_WORDS_PER_WORD = 40
INSERTION_WORDS = 12  # that words in square brackets may replace, unless they are more themselves
INSERTION_CHARACTERS = 300
LOOKAHEAD_MARKS = 40  # after an opening mark, among which the closing one is looked for
MIN_NAME = 3  # letters of a file name without its ending that count as the name of the document

_CLOSING = {  # the closing marks of each opening one, the usual one first
    '"': '"',
    "\u201c": "\u201d\u201c",
    "\u201d": "\u201d",
    "\u201e": '\u201c\u201d"',
    "\u00ab": "\u00bb",
    "\u00bb": "\u00ab\u00bb",
    "\u2039": "\u203a",
    "\u203a": "\u2039\u203a",
    "\u300c": "\u300d",
    "\u300e": "\u300f",
    "\u2018": "\u2019",
    "\u201a": "\u2018\u2019",
    "``": ("''",),
}
_ALWAYS_OPEN = ("\u201e", "\u00ab", "\u2039", "\u300c", "\u300e", "``")  # with any character beside them
_ALWAYS_CLOSE = ("\u201d", "\u300d", "\u300f", "\u00ab", "\u2039", "''")
_MARK = re.compile(
    "``|''|[\"\u201c\u201d\u201e\u00ab\u00bb\u2039\u203a\u300c\u300d\u300e\u300f\u2018\u201a]"
    rf"|\u2019(?![^\W_{SPACELESS}])"
)
_LINES = re.compile(r"(?<=\n)|(?<=\r)(?!\n)")
_GENITIVE = re.compile("[sxz]\u2019 [a-z]")
_BACKTICKS = re.compile("`+")
_HIDDEN = re.compile(r"(?<=\])\([^()]{0,1000}\)|<[a-zA-Z/][^<>]{0,1000}>")  # targets of links with their titles; tags
_ATTRIBUTION = re.compile(r"\s*(?:[\u2014\u2013\u2015]|--)\s*\S")
_REFERENCE = re.compile(
    r"[(\[](?:[^()\[\]]*\b(?:pp?\.?|pages?|slides?|sections?|seiten?|s\.)\s*\d[^()\[\]]*|[^()\[\]]*\.\w{2,5})[)\]][\s.]*\Z",
    re.IGNORECASE,
)  # such as "(report.pdf, p. 3)"
REFERENCE_CHARACTERS = 300

_ESCAPE = re.compile(r"\\(?=[!-/:-@\[-`{-~])")
_LINK = re.compile(r"!?\[([^\[\]]*)\]\([^()\s]{0,1000}(?:\s\"[^\"]{0,1000}\")?\)")
_FOOTNOTE = re.compile(r"\[\^[^\]\s]{1,50}\]")
_TAG = re.compile(r"</?(?:b|i|u|s|em|strong|sup|sub|mark|small|(br))\s?/?>", re.IGNORECASE)
_EMPHASIS_IN_WORD = re.compile(rf"(?<={LETTER})(?:\*{{1,3}}|_{{2,3}}|~~|==)(?={LETTER})")
_BREAK = re.compile(
    r"[\[(]\s{0,9}(?:\u2026{1,9}|\.\s?\.\s?\.\s?\.?)\s{0,9}[\])]|\u2026+|(?:\.\s?){3,}"
    rf"|\[(?P<inserted>[^\[\]]{{0,{INSERTION_CHARACTERS}}})\]"
)
_ENDS_WITH_WORD, _BEGINS_WITH_WORD = re.compile(r"\w+\Z"), re.compile(r"\w+")


class _Block(NamedTuple):
    """The text of a paragraph, a heading or a cell of a table, and the places of its lines."""

    text: str
    lines: list[tuple[int, int]]  # offset in `text`, offset in the answer
    is_quoted: bool

    def place(self, offset: int) -> int:
        in_text, in_answer = self.lines[bisect_right(self.lines, (offset, 1 << 62)) - 1]
        return in_answer + offset - in_text


class _Span(NamedTuple):
    """A quotation in a block, with its marks and without."""

    start: int
    end: int
    words_start: int
    words_end: int


def parse_answer(answer: str) -> Quotations:
    """Return the quotations of an answer that are long enough to be looked up."""
    found = Quotations([], [])
    introduction: list[int] = []  # index of the text before a block quote
    attributable: list[Quotation] = []  # of a block quote, which the next text may name the document of
    for block in _blocks(answer):
        spans = _spans(block)
        context = len(found.contexts)
        found.contexts.append(words(normalize(_outside(block.text, spans))))
        if not block.is_quoted:
            introduction = [context]
            if _ATTRIBUTION.match(block.text) or block.text.startswith(("(", "[")):
                for quotation in attributable:
                    quotation.contexts.append(context)
            attributable = []
        for span in spans:
            if forms := list(_forms(block.text[span.words_start : span.words_end], block.is_quoted)):
                contexts = [*introduction, context] if block.is_quoted else [context]
                start, end = block.place(span.start), block.place(span.end - 1) + 1
                found.quotations.append(Quotation(start, end, forms, contexts))
                if block.is_quoted:
                    attributable.append(found.quotations[-1])
    return found


@cache
def _parser() -> MarkdownIt:
    return MarkdownIt("commonmark").enable("table").disable("html_block")


def _blocks(answer: str) -> Iterator[_Block]:
    """Yield the texts of an answer that are not code."""
    lines = _LINES.split(answer)
    starts = list(accumulate(map(len, lines), initial=0))
    stripped = [line.rstrip() for line in lines]
    tokens: list[Token] = []
    parser = _parser()
    parser.block.parse("\n".join(stripped).replace("\0", "\ufffd"), parser, {}, tokens)
    depth = column = 0  # of block quotes; in the line of a table's row
    for token in tokens:
        if token.type in ("blockquote_open", "blockquote_close"):
            depth += token.nesting
        elif token.type == "tr_open":
            column = 0
        elif token.type in ("td_open", "th_open"):
            column += 1
        elif token.type == "inline" and token.map:
            places, offset = [], 0
            for number, line in enumerate(token.content.split("\n"), token.map[0]):
                place = stripped[number].find(line, column) if column else stripped[number].rfind(line)
                places.append((offset, starts[number] + max(place, 0)))
                offset += len(line) + 1
                if column:
                    column = max(place, column) + len(line)
            yield _Block(token.content, places, depth > 0)


def _spans(block: _Block) -> list[_Span]:
    """Return the quotations in a block. A block quote is one as a whole, unless it begins with a quotation mark."""
    text = _without_code(block.text)
    marks = list(_MARK.finditer(text))
    if block.is_quoted and (not marks or text[: marks[0].start()].strip("*_ \n")):
        end = _end_without_attribution(block.text)
        return [_Span(0, end, 0, end)]
    spans: list[_Span] = []
    free = 0
    for number, mark in enumerate(marks):
        if mark.start() >= free and mark[0] in _CLOSING and _opens(text, mark):
            following = marks[number + 1 : number + 1 + LOOKAHEAD_MARKS]
            found = (_closing(text, mark, kind, following) for kind in _CLOSING[mark[0]])
            if closing := next(filter(None, found), None):
                spans.append(_Span(mark.start(), closing.end(), mark.end(), closing.start()))
                free = closing.end()
    return spans


def _closing(text: str, opening: re.Match[str], kind: str, following: list[re.Match[str]]) -> re.Match[str] | None:
    """Return the closing mark of this kind of a quotation, after those of quotations in it, or else the first one.

    An apostrophe after an s is the mark if no other one follows: it may be a genitive.
    """
    first: re.Match[str] | None = None
    depth = 0
    for mark in following:
        if mark[0] == kind and _closes(text, mark):
            first = first or mark
            if depth:
                depth -= 1
            elif mark[0] != "\u2019" or not _GENITIVE.match(text, mark.start() - 1):
                return mark
        elif mark[0] == opening[0]:
            if first and mark[0] in "\u2018\u201a":
                break
            depth += 1
    return first


def _is_letter(character: str) -> bool:
    return character.isalnum() and not IS_SPACELESS.match(character)


def _opens(text: str, mark: re.Match[str]) -> bool:
    before, after = text[max(mark.start() - 1, 0) : mark.start()], text[mark.end() : mark.end() + 1]
    has_text = after.strip() != "" or mark[0] in "\u00bb\u203a"
    return mark[0] in _ALWAYS_OPEN or (has_text and not _is_letter(before))


def _closes(text: str, mark: re.Match[str]) -> bool:
    before, after = text[max(mark.start() - 1, 0) : mark.start()], text[mark.end() : mark.end() + 1]
    return mark[0] in _ALWAYS_CLOSE or (before.strip() != "" and not _is_letter(after)) or mark[0] in "\u00bb\u203a"


def _without_code(text: str) -> str:
    """Return a text of the same length in which inline code, the targets of links and tags are blank."""
    text = _HIDDEN.sub(lambda hidden: " " * len(hidden[0]), text)
    runs = list(_BACKTICKS.finditer(text))
    later: defaultdict[int, deque[int]] = defaultdict(deque)  # by length, the indexes of the runs
    for number, run in enumerate(runs):
        later[len(run[0])].append(number)
    pieces, last, number = [], 0, 0
    while number < len(runs):
        same = later[len(runs[number][0])]
        while same and same[0] <= number:
            same.popleft()
        start, closing = runs[number].start(), same[0] if same else None
        if closing is None or (
            len(runs[number][0]) == 2 and text.find("''", start, runs[closing].start()) > 0
        ):  # TeX quotes
            number += 1
            continue
        end = runs[closing].end()
        pieces += [text[last:start], "x" * (end - start)]
        last, number = end, closing + 1
    return "".join([*pieces, text[last:]])


def _end_without_attribution(text: str) -> int:
    """Return where a block quote ends, without a last line such as "-- report.pdf, page 3"."""
    last = text.rfind("\n") + 1
    return last - 1 if last and _ATTRIBUTION.match(text, last) else len(text)


def _outside(text: str, spans: list[_Span]) -> str:
    pieces, last = [], 0
    for span in spans:
        pieces.append(text[last : span.start])
        last = span.end
    return " \n ".join([*pieces, text[last:]])


def _forms(text: str, is_quoted: bool) -> Iterator[Form]:
    """Yield the ways to read a quotation that are long enough to be looked up."""
    texts = [text]
    head, tail = text[:-REFERENCE_CHARACTERS], text[-REFERENCE_CHARACTERS:]
    if is_quoted and (reference := _REFERENCE.search(tail)):
        texts.append(head + tail[: reference.start()])
    seen: list[list[list[str]]] = []
    for one in map(_plain, texts):
        divided = DIVISION.search(normalize(one))
        for with_insertions in (False, True) if "[" in one else (False,):
            for whole in ((), Everything()) if divided else ((),):
                parts, gaps = _parts(one, with_insertions, whole)
                units = [count_units(part) for part in parts]
                if parts not in seen and sum(units) >= MIN_UNITS and max(units) >= MIN_PART_UNITS:
                    seen.append(parts)
                    yield Form(parts, gaps)


def _plain(text: str) -> str:
    """Return the text of a quotation without its Markdown, but for marks that are no words anyway."""
    text = _FOOTNOTE.sub("", _LINK.sub(r"\1", _ESCAPE.sub("", text)))
    text = _TAG.sub(lambda tag: " " if tag[1] else "", text)
    return html.unescape(_EMPHASIS_IN_WORD.sub("", text))


def _parts(text: str, with_insertions: bool, whole: Container[str]) -> tuple[list[list[str]], list[int]]:
    """Cut a quotation at ellipses and, as asked for, at words in square brackets. Return the parts and the gaps before them."""
    parts: list[list[str]] = []
    gaps: list[int] = []
    piece, last, allowed = "", 0, [0, 0]  # allowed: words that an insertion and an ellipsis before the piece leave out

    def add(piece: str) -> None:
        nonlocal allowed
        if part := words(normalize(piece), whole):
            shorter = min(len(part), len(parts[-1])) if parts else 0
            gaps.append(allowed[0] + min(allowed[1], shorter * ELLIPSIS_WORDS_PER_WORD))
            parts.append(part)
            allowed = [0, 0]

    for found in _BREAK.finditer(text):
        inserted = found["inserted"]
        if found.start() < last or (inserted is not None and not (with_insertions and inserted.strip())):
            continue
        before, after = text[last : found.start()], text[found.end() : found.end() + HALF_WORD]
        if inserted is None:
            add(piece + before)
            allowed[1] = ELLIPSIS_WORDS
        elif len(inserted) == 1 and inserted.isalpha() and after[:1].isalpha() and not before[-1:].isalpha():  # "[T]he"
            piece, last = piece + before + inserted, found.end()
            continue
        else:  # with the letters beside it
            ending = _ENDS_WITH_WORD.search(before[-HALF_WORD:])
            add(piece + before[: len(before) - (len(ending[0]) if ending else 0)])
            allowed[0] = max(INSERTION_WORDS, len(inserted.split()))
        beginning = _BEGINS_WITH_WORD.match(after) if inserted is not None else None
        piece, last = "", found.end() + (beginning.end() if beginning else 0)
    add(piece + text[last:])
    return parts, gaps


def find_names(contexts: list[list[str]], names: list[str]) -> list[set[int]]:
    """Return for each text the documents that it names, with the file's ending or without it. A longer name counts first."""
    indexes: defaultdict[str, set[int]] = defaultdict(set)
    for index, name in enumerate(names):
        full, bare = (words(normalize(part)) for part in (name, name.rpartition(".")[0]))
        for form in (full, bare if sum(map(len, bare)) >= MIN_NAME else full):
            indexes[f" {' '.join(form)} "].add(index)
    by_length = sorted(indexes, key=len, reverse=True)
    found: list[set[int]] = []
    for context in contexts:
        text, named = f" {' '.join(context)} ", set[int]()
        for key in by_length:
            if key.strip() and key in text:
                named |= indexes[key]
                text = text.replace(key, " . ")
        found.append(named)
    return found
