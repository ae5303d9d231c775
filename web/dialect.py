r"""The Markdown dialect: a parser of markdown-it-py with rules of Fireside's own.

It is CommonMark with tables, strikethrough, task lists, alerts, footnotes, math, bare addresses, and emphasis beside Chinese, Japanese and
Korean. What differs, since a model, or a document that it read, could use it against the reader:

- HTML is text, except a few tags without attributes that come in pairs, `<br>`, and `<details>`.
- An image is a link to it.
- A link to a page of no known host, such as `[a](b.html)`, is its text and the address.
- The definition of a link or footnote stays where it is written. A reference is marked, and the page joins the two.

Every block is decided by its first line, or keeps the blocks after it open (`open_from`), so that an answer can be shown while it streams.

The rules are not those of mdit-py-plugins 0.7 (for formulas, see formulas.py), because
- footnote drops a reference whose definition has not arrived, and moves the notes;
- gfm_autolink takes quadratic time on many colons (32 s for 80 kB of "a:").
"""

import re
from functools import cache
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

from . import formulas

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.rules_block import StateBlock
    from markdown_it.rules_inline import StateInline

MAX_LEVEL = 30  # of blocks, where a list and its item are one level each, and of brackets that may be links
MAX_DETAILS_LEVEL = 8  # each level of <details> reads its lines once more
MAX_URL_CHARACTERS = 2_000
# Tags of HTML that come in pairs, and the element of each.
PAIRED_TAGS = {
    **{tag: tag for tag in ("sub", "sup", "kbd", "mark", "strong", "em", "s")},
    **{"b": "strong", "i": "em", "del": "s"},
}


def safe_href(url: str) -> str:
    """Return the address for a link, or "" unless it is plainly that of a web page or a mailbox.

    Characters that do not belong in an address are percent-encoded first. A percent sign, user name, backslash or non-ASCII letter in
    the host is then refused, and so is anything that hides the scheme.
    """
    scheme, colon, rest = quote(url[: MAX_URL_CHARACTERS + 1], safe="!#$%&'()*+,/:;=?@[]").partition(":")
    href = scheme.lower() + colon + rest
    host = r"(?:[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?\.?|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?"
    plain = re.fullmatch(rf"https?://{host}(?:[/?#].*)?|mailto:[^?@/]+@{host}(?:\?.*)?", href, re.IGNORECASE)
    return href if plain and len(url) <= MAX_URL_CHARACTERS else ""


def is_relative(url: str) -> bool:
    """Return whether an address has no scheme and no host."""
    return re.fullmatch(rf"(?![/\\]{{2}})[^:\n\0]{{1,{MAX_URL_CHARACTERS}}}", url) is not None


@cache
def parser() -> "MarkdownIt":
    from markdown_it import MarkdownIt
    from markdown_it.parser_inline import ParserInline
    from markdown_it.rules_inline import StateInline
    from markdown_it.rules_inline.state_inline import Scanned

    class State(StateInline):
        def scanDelims(self, start: int, canSplitWord: bool) -> Scanned:
            return _emphasis_beside_cjk(self, start, canSplitWord) or super().scanDelims(start, canSplitWord)

    class Inline(ParserInline):
        def parse(self, src: str, md: Any, env: Any, tokens: Any) -> Any:
            state = State(src, md, env, tokens)
            self.tokenize(state)
            for rule in self.ruler2.getRules(""):
                rule(state)
            return state.tokens

    class Parser(MarkdownIt):
        def normalizeLink(self, url: str) -> str:
            return safe_href(url) or (url if is_relative(url) else "")

        def normalizeLinkText(self, link: str) -> str:
            return link

        def validateLink(self, url: str) -> bool:
            return url != ""

    md = Parser("zero")
    md.inline = Inline()
    md.configure("zero", {"maxNesting": MAX_LEVEL + 2, "tasklists": True, "alerts": True})
    block, inline = md.block.ruler, md.inline.ruler
    anywhere: Any = {"alt": ["paragraph", "blockquote", "list"]}
    block.before("table", "deep", _deep)
    block.before("fence", "math_block", formulas.parse_block, anywhere)
    block.before("fence", "details", _details, anywhere)
    block.before("fence", "footnote", _footnote, {"alt": ["paragraph"]})
    block.before("fence", "definition", _definition, {"alt": ["paragraph"]})
    block.at("table", _table, {"alt": ["paragraph"]})
    inline.before("escape", "math_inline", formulas.parse_inline)
    inline.at("linkify", _bare_address)
    inline.at("image", _image)
    inline.after("image", "label", _reference)
    inline.after("autolink", "tag", _tag)
    md.enable(["deep", "table", "code", "math_block", "details", "footnote", "definition", "fence"])
    md.enable(["blockquote", "hr", "list", "heading", "lheading"])
    md.enable(["linkify", "newline", "math_inline", "escape", "backticks", "strikethrough", "emphasis"])
    md.enable(["link", "image", "label", "autolink", "tag", "entity"])
    md.inline.terminator_re = _TEXT_END
    return md


# What an inline rule may begin with. The parser's own expression stops at more characters, which makes prose a third slower.
_TEXT_END = re.compile(
    r"[\n*<\[\\\]`~]|(?<![a-zA-Z0-9])_|_(?![a-zA-Z0-9])|\$(?=[^\s$]|\$[^$])|!(?=\[)|&(?=[#a-zA-Z])|:(?=//)"
    r"|(?<![a-zA-Z0-9/.@_-])w(?=ww\.[a-zA-Z0-9])|(?<=[a-zA-Z0-9+_-])@(?=[a-zA-Z0-9])"
)


# ---- blocks


def _deep(state: "StateBlock", start: int, end: int, silent: bool) -> bool:
    """Make a paragraph of what is nested too deep. The parser would drop it."""
    from markdown_it.rules_block import paragraph

    return state.level >= MAX_LEVEL and paragraph(state, start, end, silent)


def _table(state: "StateBlock", start: int, end: int, silent: bool) -> bool:
    """End a table before its rows lack more cells than its source has characters.

    The parser adds the missing cells, up to 65,536 in each table: 100 kB of short rows would make three million.
    """
    from markdown_it.rules_block import table

    is_table = table(state, start, end, True)
    if silent or not is_table:
        return is_table

    def pipes(line: int) -> int:
        return state.src.count("|", state.bMarks[line], state.eMarks[line])

    terminators = state.md.block.ruler.getRules("blockquote")
    line, lacking = start + 2, 0
    while line < end and not state.isEmpty(line) and lacking < state.bMarks[line] - state.bMarks[start]:
        if any(rule(state, line, end, True) for rule in terminators):
            break
        lacking += pipes(start + 1) - pipes(line)
        line += 1
    return table(state, start, line, False)


_DETAILS = re.compile(r"<details( open)?>[ \t]*(?=<summary>|$)", re.IGNORECASE)
_SUMMARY = re.compile(r"<summary>(.*?)(</summary>|$)", re.IGNORECASE | re.DOTALL)
_DETAILS_END = re.compile(r"</details>(?=[ \t]*$)", re.IGNORECASE)


def _details(state: "StateBlock", start: int, end: int, silent: bool) -> bool:
    """Parse `<details>` on a line of its own or before `<summary>`, up to its `</details>` or the end of the text."""
    opening = _DETAILS.match(state.src, _begin(state, start), state.eMarks[start])
    if not opening or state.is_code_block(start) or state.level > MAX_DETAILS_LEVEL:
        return False
    if silent:
        return True
    last, is_closed = _end_of_details(state, start, end)
    closing = _DETAILS_END.search(state.src, state.bMarks[last], state.eMarks[last]) if is_closed else None
    if closing:
        line_end, state.eMarks[last] = state.eMarks[last], closing.start()
    content_end = last + bool(closing)
    _begin_line_at(state, start, opening.end())
    line = start
    while line < content_end and state.isEmpty(line):
        line += 1
    token = state.push("details_open", "details", 1)
    token.map, token.meta = [start, content_end], {"open": bool(opening[1])}
    line = _summary(state, line, content_end)
    line_max, state.lineMax = state.lineMax, content_end
    if line < content_end:
        state.md.block.tokenize(state, line, content_end)
    state.lineMax = line_max
    state.push("details_close", "details", -1)
    if closing:
        state.eMarks[last] = line_end
    state.line = content_end
    return True


def _end_of_details(state: "StateBlock", start: int, end: int) -> tuple[int, bool]:
    """Return the line with the `</details>` for this `<details>` and True, or the line after the content and False."""
    depth, fence = 0, ""
    for line in range(start, end):
        if not state.isEmpty(line) and state.sCount[line] < state.blkIndent:
            return line, False
        content = state.src[_begin(state, line) : state.eMarks[line]]
        if marker := re.match(r"`{3,}|~{3,}", content):
            if not fence:
                fence = marker[0]
            elif content.strip() == marker[0] and marker[0].startswith(fence):
                fence = ""
        elif not fence:
            depth += bool(_DETAILS.match(content))
            depth -= bool(_DETAILS_END.search(content) or content[:10].lower() == "</details>")
            if depth == 0:
                return line, True
    return end, False


def _summary(state: "StateBlock", line: int, end: int) -> int:
    """Push the summary of `<details>`, which may take several lines. Return the line on which the content begins."""
    text, last = "", line
    if line < end and state.src.startswith("<summary>", _begin(state, line)):
        last = line
        while "</summary>" not in state.src[state.bMarks[last] : state.eMarks[last]] and last + 1 < end:
            if state.isEmpty(last + 1):
                break
            last += 1
        text = state.getLines(line, last + 1, state.blkIndent, False).lstrip()
    found = _SUMMARY.match(text)
    state.push("summary_open", "summary", 1)
    content = re.sub(r"</?h[1-6]>", "", found[1]).strip() if found else ""
    state.push("inline", "", 0).content = content or "Details"
    state.push("summary_close", "summary", -1)
    if not found:
        return line
    rest = text[found.end() :]
    if not rest.strip():
        return last + 1
    _begin_line_at(state, last, state.eMarks[last] - len(rest))
    return last


def _footnote(state: "StateBlock", start: int, end: int, silent: bool) -> bool:
    """Parse `[^label]: text` with the lines after it that are indented by four columns."""
    note = _FOOTNOTE.match(state.src, _begin(state, start), state.eMarks[start])
    if not note or state.is_code_block(start):
        return False
    if silent:
        return True
    token = state.push("footnote_open", "div", 1)
    token.meta = {"label": _label("^" + note[1]), "text": note[1]}
    saved = state.bMarks[start], state.tShift[start], state.sCount[start]
    state.blkIndent += 4
    _begin_line_at(state, start, note.end())
    state.md.block.tokenize(state, start, end)
    state.blkIndent -= 4
    state.bMarks[start], state.tShift[start], state.sCount[start] = saved
    token.map = [start, state.line]
    state.push("footnote_close", "div", -1)
    return True


_FOOTNOTE = re.compile(r"\[\^([^\]\s\[\\]{1,50})\]:[ \t]*")
_DEFINITION = re.compile(
    rf"\[(?!\^)(?P<label>[^\[\]\\]{{1,100}})\]:[ \t]*(?P<open><)?(?P<url>[^\s<>]{{1,{MAX_URL_CHARACTERS}}})(?(open)>)"
    r"(?P<title>[ \t]+(?:\"[^\"]*\"|'[^']*'|\([^()]*\)))?[ \t]*$"
)


def _definition(state: "StateBlock", start: int, end: int, silent: bool) -> bool:
    """Parse `[label]: https://example.org "title"` as a paragraph that references can find."""
    definition = _DEFINITION.match(state.src, _begin(state, start), state.eMarks[start])
    href = safe_href(definition["url"]) if definition and not state.is_code_block(start) else ""
    if not definition or not href or not definition["label"].strip():
        return False
    if not silent:
        token = state.push("definition_open", "p", 1)
        token.map, token.meta = [start, start + 1], {"label": _label(definition["label"]), "address": href}
        content = f"\\[{definition['label']}]: <{definition['url']}>{definition['title'] or ''}"
        state.push("inline", "", 0).content = content
        state.push("definition_close", "p", -1)
        state.line = start + 1
    return True


def _begin(state: "StateBlock", line: int) -> int:
    return state.bMarks[line] + state.tShift[line]


def _begin_line_at(state: "StateBlock", line: int, position: int) -> None:
    """Let the content of a line begin at a position, without indentation."""
    text = state.src[position : state.eMarks[line]]
    state.bMarks[line] = position
    state.tShift[line] = len(text) - len(text.lstrip(" \t"))
    state.sCount[line] = state.blkIndent


def _label(text: str) -> str:
    return " ".join(text.split()).casefold()


# ---- inline

_CJK = (
    r"\u1100-\u11ff\u2e80-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef\U00020000-\U0003ffff"
)
_IS_CJK = re.compile(f"[{_CJK}]")


def _emphasis_beside_cjk(state: "StateInline", start: int, can_split_word: bool) -> Any:
    """Return whether emphasis may begin or end here, or None without Chinese, Japanese or Korean beside it.

    CommonMark expects a space outside of punctuation, which these scripts do not write: **「a」**b has none.
    """
    length = 1
    while start + length < state.posMax and state.src[start + length] == state.src[start]:
        length += 1
    before = state.src[start - 1] if start else " "
    after = state.src[start + length] if start + length < state.posMax else " "
    if not can_split_word or not (_IS_CJK.match(before) or _IS_CJK.match(after)):
        return None
    from markdown_it.common.utils import isMdAsciiPunct, isPunctChar, isWhiteSpace
    from markdown_it.rules_inline.state_inline import Scanned

    def is_boundary(character: str) -> bool:
        return isWhiteSpace(ord(character)) or is_punctuation(character) or _IS_CJK.match(character) is not None

    def is_punctuation(character: str) -> bool:
        return isMdAsciiPunct(ord(character)) or isPunctChar(character)

    def flanks(inner: str, outer: str) -> bool:
        if isWhiteSpace(ord(inner)):
            return False
        return is_boundary(outer) or not is_punctuation(inner) or _IS_CJK.match(inner) is not None

    return Scanned(flanks(after, before), flanks(before, after), length)


# Not linkify-it-py: it reads on where Chinese or Japanese follows an address without a space and through Markdown's own signs, and
# markdown-it's rule for it takes quadratic time on addresses that are refused (5 s for 5,000).
_URL_CHARACTERS = (
    rf"[^\s<>\"`*^{{|}}\\\[\]\u2e80-\u9fff\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef]{{1,{MAX_URL_CHARACTERS}}}"
)
_URL_REST = re.compile(f"://{_URL_CHARACTERS}")
_WWW = re.compile(rf"www\.(?=[a-zA-Z0-9_-]+\.[a-zA-Z0-9]){_URL_CHARACTERS}")
_MAIL_REST = re.compile(r"@[a-zA-Z0-9.-]{1,255}")
# With the two characters behind it: "git@example.org:user/repository" is not an address of mail, and "react@18.2.0" neither.
_MAIL = re.compile(r"[^@]+@(?:[a-zA-Z0-9-]+\.)+[a-zA-Z]{2,}(?:[^\w@/:-].?|[.:](?:\s|$))?", re.DOTALL)


def _bare_address(state: "StateInline", silent: bool) -> bool:
    """Parse https://example.org, www.example.org and name@example.org as links, without the punctuation behind them.

    The parser calls the rule at the colon, the first w or the at sign.
    """
    if silent or state.linkLevel or state.src[state.pos] not in ":@w":
        return False
    before = state.src[max(0, state.pos - 66) : state.pos]
    if rest := _URL_REST.match(state.src, state.pos, state.posMax):
        start = re.search(r"(?<![a-zA-Z0-9])https?$", before[-6:], re.IGNORECASE)
        prefix = ""
    elif rest := _MAIL_REST.match(state.src, state.pos, state.posMax):
        start = re.search(r"(?<![a-zA-Z0-9.+_/:-])[a-zA-Z0-9.+_-]{1,64}$", before)
        prefix = "mailto:"
    elif rest := _WWW.match(state.src, state.pos, state.posMax):
        start = re.search("$", before)
        prefix = "http://"
    if not rest or not start or not state.pending.endswith(start[0]):
        return False
    url = _without_punctuation(start[0] + rest[0])
    href = safe_href(prefix + url)
    end = state.pos + len(url) - len(start[0])
    if not href or (prefix == "mailto:" and not _MAIL.fullmatch(url + state.src[end : end + 2])):
        return False
    state.pending = state.pending.removesuffix(start[0])
    state.push("link_open", "a", 1).attrs = {"href": href}
    state.push("text", "", 0).content = url
    state.push("link_close", "a", -1)
    state.pos = end
    return True


def _without_punctuation(url: str) -> str:
    punctuation = "?!.,:;_~'"
    url = url.rstrip(punctuation)
    while url.endswith(")") and url.count(")") > url.count("("):
        url = url[:-1].rstrip(punctuation)
    return url


def _image(state: "StateInline", silent: bool) -> bool:
    """Parse `![description](address)` as a link, so that the page fetches nothing by itself."""
    from markdown_it.rules_inline import link

    if not state.src.startswith("![", state.pos):
        return False
    state.pos += 1
    if link(state, silent):
        return True
    state.pos -= 1
    return False


_REFERENCE = re.compile(
    r"\[\^(?P<note>[^\]\s\[\\]{1,50})\]|\[(?P<number>\d{1,3})\](?!\[\])"
    r"|!?\[(?P<text>(?:[^\[\]\\`]|`[^`\[\]\\]{1,100}`){1,200})\]\[(?P<label>[^\[\]\\]{0,100})\]"
)


def _reference(state: "StateInline", silent: bool) -> bool:
    """Parse `[^1]`, `[text][label]`, `[text][]`, the same of images, and `[1]`, which may refer to a definition. Without one, the page shows the source.

    `[text]` alone is no reference: the end of an answer could make links of brackets in its beginning.
    """
    found = _REFERENCE.match(state.src, state.pos, state.posMax)
    if not found or state.linkLevel:
        return False
    kind = cast(str, found.lastgroup if found["text"] is None else "text")
    if not silent:
        first, after = found.span(kind)
        label = "^" + found["note"] if found["note"] else found["label"] or found[kind]
        state.push("reference_open", "span", 1).meta = {"reference": _label(label)}
        state.push("bracket", "span", 0).content = state.src[state.pos : first]
        state.push("reference_text_open", "a", 1)
        pos_max, state.pos, state.posMax = state.posMax, first, after
        state.linkLevel += 1
        state.md.inline.tokenize(state)
        state.linkLevel -= 1
        state.posMax = pos_max
        state.push("reference_text_close", "a", -1)
        state.push("bracket", "span", 0).content = state.src[after : found.end()]
        state.push("reference_close", "span", -1)
    state.pos = found.end()
    return True


_TAG = re.compile(rf"<(/?)(br|{'|'.join(PAIRED_TAGS)})[ \t]*/?>", re.IGNORECASE)


def _tag(state: "StateInline", silent: bool) -> bool:
    """Parse `<br>`, and other tags as text that `pair_tags` may change."""
    found = _TAG.match(state.src, state.pos, state.posMax)
    if not found:
        return False
    if not silent and found[2].lower() == "br":
        state.push("hardbreak", "br", 0)
    elif not silent:
        token = state.push("tag_close" if found[1] else "tag_open", PAIRED_TAGS[found[2].lower()], 0)
        token.content = found[0]
    state.pos = found.end()
    return True
