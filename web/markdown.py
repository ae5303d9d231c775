"""Markdown into a small tree, from which the page builds its nodes with createElement.

A node is a text or a list `[tag, {attribute: value}, node, node, ...]`. Tags and attributes are those of `TAGS`, which
the page holds too; values are texts. Names that begin with m are MathML and want its namespace, all others are HTML.
To `a` the page adds `rel` and `target`; math and code may be wide, so it clips what leaves the message.

CommonMark with tables, strikethrough, task lists, bare URLs and math, less three things that a model or a document it
read could turn against the reader: HTML is text, an image is a link to it, and there are no link reference definitions
(they would carry an address past the eye, and let the end of an answer change its beginning).

The block structure takes time linear in the text. A lexer or a formula may take longer, so the service calls `stream` in a sandbox child
(renderer.py). markdown_it, pygments and latex2mathml are imported at first use.
"""

import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from itertools import accumulate, groupby, pairwise, takewhile
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict
from urllib.parse import quote

import msgspec

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    from markdown_it import MarkdownIt
    from markdown_it.rules_block import StateBlock
    from markdown_it.rules_inline import StateInline
    from markdown_it.token import Token

Node: TypeAlias = str | list[Any]


class Block(TypedDict):
    """A top-level block. `closed` says that no text appended to the source can change it, or any block before it."""

    end: int  # where its source ends and the next block's begins, in UTF-16 code units, which JavaScript counts
    closed: bool
    node: Node


BLOCK_DEPTH = 30  # a list and its item count one each; what lies deeper is shown as it was written
BRACKET_DEPTH = 8  # brackets around brackets are looked at no deeper for links
DEPTH = 100  # no node lies deeper; the last MATH_DEPTH are left for formulas
MATH_DEPTH = 40
FORMULA_CHARACTERS = 2_000
CODE_CHARACTERS = 20_000  # 500 lines
COLOUR_SECONDS = 0.1  # of the processor's time; 500 lines take about as much
URL_CHARACTERS = 2_000


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_HTML = _names("a blockquote br code em h1 h2 h3 h4 h5 h6 hr li ol p pre s span strong table tbody td th thead tr ul")
_HTML_ATTRIBUTES = {
    "a": _names("href"),  # begins with http:, https: or mailto:
    "code": _names("data-language"),  # [a-z0-9+#-]{1,30}
    "li": _names("class"),  # task
    "ol": _names("start"),
    "pre": _names("class"),  # unformatted
    "span": _names("class"),  # one of CODE_CLASSES
    "td": _names("align"),  # left, center or right
    "th": _names("align"),
}
_MATHML = _names(
    "math menclose mfrac mi mn mo mover mpadded mphantom mroot mrow mspace msqrt mstyle msub msubsup msup mtable mtd "
    "mtext mtr munder munderover"
)
_MATHML_ATTRIBUTES = _names(
    "accent columnalign columnlines columnspacing depth display displaystyle fence form height largeop linebreak "
    "linethickness lspace mathsize mathvariant maxsize minsize movablelimits notation rowlines rowspacing rspace "
    "scriptlevel separator stretchy voffset width"
)
TAGS: Mapping[str, frozenset[str]] = {
    **{tag: _HTML_ATTRIBUTES.get(tag, frozenset()) for tag in _HTML},
    **dict.fromkeys(_MATHML, _MATHML_ATTRIBUTES),
}
# Pygments' short names, or the first letters of them: keyword, operator word, string, comment, number, the names of
# functions, classes, builtins, tags, attributes and decorators, and in a diff what is deleted, inserted and a heading.
CODE_CLASSES = _names("k ow s c m nf nc nb nt na nd gd gi gh")
LANGUAGES = _names(
    "asm bash c c# c++ clojure cmake cpp cs csharp css dart diff docker dockerfile elixir erlang fortran go "
    "golang graphql haskell hs html java javascript js json jsx julia kotlin latex lua make makefile nginx "
    "nix objective-c perl php powershell proto ps1 py python r rb rs ruby rust scala scss sh shell sql swift terraform "
    "tex toml ts tsx typescript xml yaml yml zig zsh"
)


def blocks(markdown: str) -> list[Block]:
    """The top-level blocks, in order. While an answer streams, what is closed is kept and only the rest is asked again:

    with `n` the end of the last closed one, the blocks of `text` are its closed ones, then `blocks(text[n:])` with n added
    to `end`.
    """
    groups, bounds, fixed = _parse(markdown)
    return [
        {"end": end, "closed": end <= fixed, "node": _tree(group)}
        for group, end in zip(groups, bounds[1:], strict=True)
    ]


def stream(texts: list[str], finished: int) -> Iterator[bytes]:
    """For a sandbox child: yield the outline of each text, then the node of each of its blocks, as soon as it is known.

    An item is msgpack: (index of the text, [(end, closed) of each block] or None, JSON of a node). Of the first text the first
    `finished` nodes are left out.
    """
    for index, text in enumerate(texts):
        groups, bounds, fixed = _parse(text)
        yield msgspec.msgpack.encode((index, [(end, end <= fixed) for end in bounds[1:]], b""))
        for group in groups[finished:]:
            yield msgspec.msgpack.encode((index, None, msgspec.json.encode(_tree(group))))
        finished = 0


def unformatted(text: str) -> Node:
    """Return the node of a text that is shown as it was written because formatting it failed."""
    return ["pre", {"class": "unformatted"}, ["code", {}, re.sub(r"[\0\ud800-\udfff]", "\ufffd", text)]]


def _parse(markdown: str) -> tuple[list[list["Token"]], list[int], int]:
    """Each top-level block's tokens, inline content not parsed yet; where each begins and the last ends; the end of the last that
    is closed, in UTF-16 code units.

    A block is closed once another has begun. That takes the next block's first line; a table's takes two. Both must be
    whole, as the last line may not be: "--" may become "---" or "--x".
    """
    lines = re.split(r"(?<=\n)|(?<=\r)(?!\n)", markdown)
    offsets = list(accumulate((len(line.encode("utf-16-le", "surrogatepass")) // 2 for line in lines), initial=0))
    source = re.sub(r"[\0\ud800-\udfff]", "\ufffd", "\n".join(line.rstrip("\r\n") for line in lines))
    tokens: list[Token] = []
    parser = _parser(BLOCK_DEPTH + 2)
    parser.block.parse(source, parser, {}, tokens)
    tops = [index for index, token in enumerate(tokens) if token.level == 0 and token.nesting >= 0]
    groups = [tokens[first:after] for first, after in pairwise([*tops, len(tokens)])]
    starts = [group[0].map[0] for group in groups if group[0].map]
    fixed = max((offsets[line] for line in starts[1:] if line < len(lines) - 2), default=0)
    return groups, [*(offsets[line] for line in starts), offsets[-1]], fixed


def _tree(tokens: Sequence["Token"]) -> Node:
    """The node of one top-level block. Inlines are parsed here, each by itself."""
    parser = _parser(BRACKET_DEPTH)
    tree = _Tree()
    for token in tokens:
        if token.type == "inline":
            tree.feed(parser.inline.parse(token.content, parser, {}, []))
        else:
            tree.feed([token])
    return tree.root[0]


class _Tree:
    """Grows from a flat run of tokens. What may not stand where it is (a link in a link) leaves its content behind."""

    def __init__(self) -> None:
        self.root: list[Node] = []
        self.stack: list[list[Any]] = [self.root]  # an element left out stands here as its parent, once more
        self.text: list[str] = []

    def feed(self, tokens: Iterable["Token"]) -> None:
        for token in tokens:
            if token.nesting > 0:
                self._open(token)
            elif token.nesting < 0:
                self._close()
            elif token.type in ("text", "text_special"):
                self.text.append(token.content)
            elif token.type == "softbreak":
                self.text.append("\n")
            else:
                self._end_text()
                self.stack[-1].append(_leaf(token))

    def _open(self, token: "Token") -> None:
        nested = token.tag == "a" and any(element[:1] == ["a"] for element in self.stack)
        if token.hidden or nested or token.tag not in TAGS or len(self.stack) > DEPTH - MATH_DEPTH:
            self.stack.append(self.stack[-1])
            return
        self._end_text()
        element: list[Any] = [token.tag, _attributes(token)]
        self.stack[-1].append(element)
        self.stack.append(element)
        if "checked" in token.meta:
            self.text.append("\u2611 " if token.meta["checked"] else "\u2610 ")

    def _close(self) -> None:
        element = self.stack[-1]
        if element is not self.stack[-2]:
            self._end_text()
            if element[0] == "a" and len(element) == 2:
                element.append(element[1]["href"])  # a link without a text, or an image without a description
        self.stack.pop()

    def _end_text(self) -> None:
        text = "".join(self.text)
        self.text.clear()
        if text:
            self.stack[-1].append(text)


def _attributes(token: "Token") -> dict[str, str]:
    """Made anew, never copied: whatever else a token carries does not reach the page."""
    if token.tag == "a":
        return {"href": str(token.attrs["href"])}
    if token.tag == "ol" and "start" in token.attrs:
        return {"start": str(token.attrs["start"])}
    if token.tag in ("td", "th") and "style" in token.attrs:
        return {"align": str(token.attrs["style"]).removeprefix("text-align:")}
    if token.tag == "li" and "checked" in token.meta:
        return {"class": "task"}
    return {}


def _leaf(token: "Token") -> Node:
    if token.type == "code_inline":
        return ["code", {}, token.content]
    if token.type in ("fence", "code_block"):
        return _code(token.content, token.info)
    if token.type in ("math_inline", "math_block"):
        display = token.markup not in ("$", "\\(")
        math = _math(token.content, "block" if display else "inline")
        if math is not None:
            return math
        source: Node = ["code", {"data-language": "latex"}, token.content]
        return ["pre", {}, source] if token.type == "math_block" else source
    return [token.tag, {}]  # br, hr


# ---- code


def _code(code: str, info: str) -> Node:
    first = (info.split() or [""])[0].lower()
    language = first if re.fullmatch(r"[a-z0-9+#-]{1,30}", first) else ""
    pieces = _coloured(code, language) if language in LANGUAGES and len(code) <= CODE_CHARACTERS else [code]
    return ["pre", {}, ["code", {"data-language": language} if language else {}, *pieces]]


def _coloured(code: str, language: str) -> list[Node]:
    """Coloured as far as COLOUR_SECONDS go: on some text most lexers take the time squared, C's on blank lines."""
    from pygments.lexers import get_lexer_by_name  # type: ignore[import-untyped]
    from pygments.token import STANDARD_TYPES  # type: ignore[import-untyped]

    lexer = get_lexer_by_name(language, startinline=True)  # startinline: PHP without its opening tag
    deadline = time.thread_time() + COLOUR_SECONDS  # the first of its language has loaded the lexer
    lexed = takewhile(lambda _: time.thread_time() < deadline, lexer.get_tokens_unprocessed(code))
    pieces = [(STANDARD_TYPES.get(kind, ""), text) for _, kind, text in lexed]
    pieces.append(("", code[sum(len(text) for _, text in pieces) :]))
    named = [(next((name for name in (short, short[:1]) if name in CODE_CLASSES), ""), text) for short, text in pieces]
    runs = [(name, "".join(text for _, text in run)) for name, run in groupby(named, itemgetter(0))]
    return [["span", {"class": name}, text] if name else text for name, text in runs if text]


# ---- math


# What latex2mathml lacks, in words that it has.
_KNOWN_TEX = (
    (r"\\(begin|end)\{(?:aligned|align|eqnarray)\*?\}", r"\\\1{align*}"),
    (r"\\(begin|end)\{(?:gathered|gather|multline)\*?\}", r"\\\1{matrix}"),
    (r"\\(begin|end)\{[dr]cases\}", r"\\\1{cases}"),
    (r"(\\operatorname\*?\{[^{}]*)\\,", r"\1 "),
    (r"\\arg(?![a-zA-Z])", r"\\operatorname{arg}"),
)


@lru_cache(maxsize=256)
def _math(tex: str, display: str) -> Node | None:
    """MathML, or None for what is not understood, or more than a formula: links, styles, macros. Not to be changed."""
    from latex2mathml.converter import convert_to_element

    if len(tex) > FORMULA_CHARACTERS or re.search(r"\\(?:def|newcommand|newenvironment)(?![a-zA-Z])", tex):
        return None  # a macro of macros of macros grows without end
    for lacking, known in _KNOWN_TEX:
        tex = re.sub(lacking, known, tex)
    try:
        return _mathml(convert_to_element(tex, display=display), MATH_DEPTH)
    except Exception:  # it raises whatever its parser trips over: IndexError, StopIteration, RecursionError
        return None


_SCRIPTS = {"mfrac": 2, "mover": 2, "mroot": 2, "msub": 2, "msup": 2, "munder": 2, "msubsup": 3, "munderover": 3}
_IGNORED = frozenset({"xmlns", "mathcolor", "mathbackground"})


def _mathml(element: "Element", depth: int) -> Node:
    """Raises ValueError where the tree holds anything that `TAGS` does not, or TeX that was not understood.

    The tree is read as it is. As a string it would be markup in which the formula's own text is not escaped.
    """
    from html import unescape  # a table of entities, which a start does not need either

    attributes = {name: value for name, value in element.attrib.items() if name not in _IGNORED}
    text = re.sub(r"\\([%$#&_{}])", r"\1", unescape(element.text or ""))
    if (
        depth == 0
        or element.tag not in _MATHML
        or not _MATHML_ATTRIBUTES.issuperset(attributes)
        or not all(re.fullmatch(r"[a-zA-Z0-9.+ -]{0,60}", value) for value in attributes.values())
        or (element.tag == "mi" and re.fullmatch(r"\\[a-zA-Z]+|[&{}]", text))
    ):
        raise ValueError("not a formula that the page may show")
    children: list[Node] = [_mathml(child, depth - 1) for child in element]
    surplus = len(children) - _SCRIPTS.get(element.tag, len(children))
    if surplus < 0:
        raise ValueError("a script without its base")
    if surplus > 0:  # the base of a matrix or binomial arrives in pieces: its parentheses are nodes of their own
        children[: surplus + 1] = [["mrow", {}, *children[: surplus + 1]]]
    return [element.tag, attributes, *([text] if text else []), *children]


# ---- links


def _href(url: str) -> str:
    """The address as a link may carry it, or "" for any that is not plainly a web page or a mailbox.

    Everything that has no business in an address is percent-encoded first; a percent sign, a user name, a backslash or
    a letter beyond ASCII in the host then fails, as does whatever hides the scheme.
    """
    scheme, colon, rest = quote(url[: URL_CHARACTERS + 1], safe="!#$%&'()*+,/:;=?@[]").partition(":")
    href = scheme.lower() + colon + rest
    host = r"(?:[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?\.?|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?"
    plain = re.fullmatch(rf"https?://{host}(?:[/?#].*)?|mailto:[^?@/]+@{host}(?:\?.*)?", href, re.IGNORECASE)
    return href if plain and len(url) <= URL_CHARACTERS else ""


# ---- what the parser is taught


# What one of the inline rules below may begin with. The parser stops at many more characters, each of which takes time.
_TEXT_END = re.compile(r"[\n*<\[\\\]_`~]|\$(?=[^\s$]|\$[^$])|!(?=\[)|&(?=[#a-zA-Z])|:(?=//)")


@cache
def _parser(depth: int) -> "MarkdownIt":
    from markdown_it import MarkdownIt

    class Parser(MarkdownIt):
        def normalizeLink(self, url: str) -> str:
            return _href(url)

        def normalizeLinkText(self, link: str) -> str:
            return link

        def validateLink(self, url: str) -> bool:
            return url != ""

    parser = Parser("zero", {"maxNesting": depth, "tasklists": True})
    parser.block.ruler.before("table", "deep", _deep)
    parser.block.ruler.before("fence", "math_block", _math_block, {"alt": ["paragraph", "blockquote", "list"]})
    parser.block.ruler.at("table", _table, {"alt": ["paragraph"]})
    parser.inline.ruler.before("escape", "math_inline", _math_inline)
    parser.inline.ruler.at("linkify", _bare_url)
    parser.inline.ruler.at("link", _link)
    parser.inline.ruler.at("image", _image)
    parser.enable(["deep", "table", "code", "math_block", "fence", "blockquote", "hr", "list", "heading", "lheading"])
    parser.enable(["linkify", "newline", "math_inline", "escape", "backticks", "strikethrough", "emphasis"])
    parser.enable(["link", "image", "autolink", "entity"])
    parser.inline.terminator_re = _TEXT_END
    for ruler in (parser.block.ruler, parser.inline.ruler, parser.inline.ruler2):
        ruler.getRules("")  # else the first to need them compiles them, and a second thread finds half of them
    return parser


def _deep(state: "StateBlock", start: int, end: int, silent: bool) -> bool:
    """Nesting ends here: the rest is a paragraph. Left to itself the parser would drop it."""
    from markdown_it.rules_block import paragraph

    return state.level >= BLOCK_DEPTH and paragraph(state, start, end, silent)


def _table(state: "StateBlock", start: int, end: int, silent: bool) -> bool:
    """A table ends before its rows leave out more cells than its source has characters.

    They are filled up: 100 kB of nearly empty rows would otherwise make five million cells.
    """
    from markdown_it.rules_block import table

    if not table(state, start, end, True):
        return False
    if silent:
        return True

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


_CLOSERS = {"$$": "$$", r"\[": r"\]", r"\(": r"\)"}


def _math_block(state: "StateBlock", start: int, end: int, silent: bool) -> bool:
    r"""`$$` or `\[` at a line's start, up to the line that ends with its counterpart, as for a fence.

    Whether it is one is decided by its first line, and a blank line ends it: so it stays what it is while it streams.
    """
    begin = state.bMarks[start] + state.tShift[start]
    opener = state.src[begin : begin + 2]
    if opener not in ("$$", r"\[") or state.is_code_block(start):
        return False
    closer = _CLOSERS[opener]
    first, found, rest = state.src[begin + 2 : state.eMarks[start]].partition(closer)
    if found and (rest.strip() or not first.strip()):
        return False
    if silent:  # within a paragraph it may close a formula that was opened in the midst of a line
        before = state.src[max(state.bMarks[state.line], begin - FORMULA_CHARACTERS) : begin]
        return bool(found) or opener != "$$" or before.count("$$") % 2 == 0
    line = start + 1
    while not found and line < end and not state.isEmpty(line) and state.sCount[line] >= state.blkIndent:
        _, found, rest = state.src[state.bMarks[line] : state.eMarks[line]].partition(closer)
        line += 1
    state.line = line
    source = state.getLines(start, line, state.blkIndent, False).strip()
    if found and not rest.strip():
        token = state.push("math_block", "", 0)
        token.content, token.markup, token.map = source[2:-2].strip(), opener, [start, line]
    else:
        state.push("paragraph_open", "p", 1).map = [start, line]
        state.push("inline", "", 0).content = source
        state.push("paragraph_close", "p", -1)
    return True


# Money is no formula: "$5 and $6". The bounds keep many openers without an end from costing time by the square.
_DOLLARS = re.compile(rf"(?<![a-zA-Z0-9])\$(?![\s$])((?:[^$\\\n]|\\.){{1,{FORMULA_CHARACTERS}}}+)(?<!\s)\$(?!\d)")
_CJK = r"\u2e80-\u9fff\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef"  # written without a space behind an address
_URL = re.compile(rf"://[^\s<>\"`*^{{|}}\\\[\]{_CJK}]{{1,{URL_CHARACTERS}}}")


def _math_inline(state: "StateInline", silent: bool) -> bool:
    opener = state.src[state.pos : state.pos + 2]
    if closer := _CLOSERS.get(opener):
        begin = state.pos + 2
        close = state.src.find(closer, begin, min(state.posMax, begin + FORMULA_CHARACTERS + 2))
        formula, after = state.src[begin : max(begin, close)], close + 2
    elif found := _DOLLARS.match(state.src, state.pos, state.posMax):
        opener, formula, after = "$", found[1], found.end()
    else:
        return False
    if not formula.strip():
        return False
    if not silent:
        token = state.push("math_inline", "", 0)
        token.content, token.markup = formula.strip(), opener
    state.pos = after
    return True


def _bare_url(state: "StateInline", silent: bool) -> bool:
    """https://example.org as a link, without the punctuation behind it. The rule is called at the colon."""
    found = not silent and _URL.match(state.src, state.pos, state.posMax)
    before = found and re.search(r"(?<![a-zA-Z0-9])https?$", state.src[max(0, state.pos - 6) : state.pos], re.I)
    if not found or not before:
        return False
    rest = found[0]
    length, unopened = len(rest), rest.count(")") - rest.count("(")
    while rest[length - 1] in "?!.,:;_~'" or (rest[length - 1] == ")" and unopened > 0):
        unopened -= rest[length - 1] == ")"
        length -= 1
    url = before[0] + rest[:length]
    href = _href(url)
    if not href or not state.pending.endswith(before[0]):
        return False
    state.pending = state.pending.removesuffix(before[0])
    state.push("link_open", "a", 1).attrs = {"href": href}
    state.push("text", "", 0).content = url
    state.push("link_close", "a", -1)
    state.pos += length
    return True


def _link(state: "StateInline", silent: bool) -> bool:
    from markdown_it.rules_inline import link

    if "last" not in state.env:
        state.env["last"] = state.src.rfind("](")  # behind it no bracket needs to be looked at
    return state.pos < state.env["last"] and link(state, silent)


def _image(state: "StateInline", silent: bool) -> bool:
    """`![description](address)` is a link: nothing is fetched unasked."""
    if not state.src.startswith("![", state.pos):
        return False
    state.pos += 1
    if _link(state, silent):
        return True
    state.pos -= 1
    return False
