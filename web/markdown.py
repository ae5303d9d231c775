"""Markdown as trees of nodes, from which the page builds elements.

A node is a text or a list `[tag, {attribute: value}, node, node, ...]`. Tags and attributes are those in static/tags.js; values are texts.

The dialect is CommonMark with tables, strikethrough, task lists, bare URLs and math, without three features that a model, or a document
that it read, could use against the reader: HTML is text, an image is a link to it, and link reference definitions are text (they hide the
address of a link, and the end of an answer could change its beginning).

Highlighting, formulas and some hostile texts take long, so the service calls `render` in a sandbox child (renderer.py). markdown_it,
pygments and latex2mathml are imported at first use, which keeps the start of the service fast.
"""

import json
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, lru_cache
from html import unescape
from importlib import resources
from itertools import accumulate, groupby, pairwise, takewhile
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import quote

import msgspec

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    from markdown_it import MarkdownIt
    from markdown_it.rules_block import StateBlock
    from markdown_it.rules_inline import StateInline
    from markdown_it.token import Token

Node: TypeAlias = str | list[Any]
Outline: TypeAlias = tuple[
    list[int], int
]  # where each top-level block of a text ends; how many of the blocks are closed

MAX_LEVEL = 30  # of blocks, where a list and its item are one level each, and of brackets that may be links
MAX_DEPTH = 100  # of the tree, with formulas
MAX_MATH_DEPTH = 40
MAX_FORMULA_CHARACTERS = 2_000
MAX_CODE_CHARACTERS = 20_000  # longer code is not highlighted; 500 lines
MAX_URL_CHARACTERS = 2_000
HIGHLIGHT_SECONDS = 0.1  # processor time; 500 lines take about as much

_ALLOWED = json.loads(
    re.findall(r"(?s)\{.*\}", resources.files("fireside").joinpath("static/tags.js").read_text("utf-8"))[0]
)
_MATHML, _MATHML_ATTRIBUTES = frozenset(_ALLOWED["mathml"]), frozenset(_ALLOWED["mathmlAttributes"])
TAGS: dict[str, frozenset[str]] = {
    **{tag: frozenset(attributes) for tag, attributes in _ALLOWED["html"].items()},
    **dict.fromkeys(_MATHML, _MATHML_ATTRIBUTES),
}
# Pygments' short names, or their first letters: keyword, operator word, string, comment, number; names of functions, classes, builtins,
# tags, attributes and decorators; deleted, inserted and heading lines of a diff.
CODE_CLASSES = frozenset({"k", "ow", "s", "c", "m", "nf", "nc", "nb", "nt", "na", "nd", "gd", "gi", "gh"})
LANGUAGES = frozenset((
    "asm", "bash", "c", "c#", "c++", "clojure", "cmake", "cpp", "cs", "csharp", "css", "dart", "diff", "docker",
    "dockerfile", "elixir", "erlang", "fortran", "go", "golang", "graphql", "haskell", "hs", "html", "java",
    "javascript", "js", "json", "jsx", "julia", "kotlin", "latex", "lua", "make", "makefile", "nginx", "nix",
    "objective-c", "perl", "php", "powershell", "proto", "ps1", "py", "python", "r", "rb", "rs", "ruby", "rust",
    "scala", "scss", "sh", "shell", "sql", "swift", "terraform", "tex", "toml", "ts", "tsx", "typescript", "xml",
    "yaml", "yml", "zig", "zsh",
))  # fmt: skip


def render(text: str, skip: int = 0) -> Iterator[bytes]:
    """Yield the Outline of a text as msgpack, then the node of each top-level block after the first `skip` ones as JSON.

    No text appended to the source changes a closed block or the blocks before it. So while an answer streams, the page keeps closed blocks
    and sends only the rest again: with `n` the end of the last closed block, the blocks of `text` are the closed ones and those of `text[n:]`.
    """
    blocks, outline = _parse_blocks(text)
    yield msgspec.msgpack.encode(outline)
    for tokens in blocks[skip:]:
        yield msgspec.json.encode(_node(tokens))


def unformatted(text: str) -> Node:
    """Return the node of a text that could not be formatted."""
    return ["pre", {"class": "unformatted"}, ["code", {}, _printable(text)]]


def _printable(text: str) -> str:
    return re.sub(r"[\0\ud800-\udfff]", "\ufffd", text)


def _parse_blocks(text: str) -> tuple[list[list["Token"]], Outline]:
    """Return the tokens of each top-level block, with inline content still as text.

    A block is closed when the next one has begun, which takes one whole line, or two for a table. The last line may not be whole:
    "--" may become "---" or "--x".
    """
    lines = re.split(r"(?<=\n)|(?<=\r)(?!\n)", text)
    offsets = list(accumulate(map(len, lines), initial=0))
    parser = _parser()
    tokens: list[Token] = []
    parser.block.parse(_printable("\n".join(line.rstrip("\r\n") for line in lines)), parser, {}, tokens)
    firsts = [index for index, token in enumerate(tokens) if token.level == 0 and token.nesting >= 0]
    blocks = [tokens[first:after] for first, after in pairwise([*firsts, len(tokens)])]
    starts = [block[0].map[0] for block in blocks[1:] if block[0].map]
    ends = [offsets[line] for line in starts] + [len(text)] * bool(blocks)
    return blocks, (ends, sum(line < len(lines) - 2 for line in starts))


def _node(tokens: Sequence["Token"]) -> Node:
    """Return the node of a top-level block. Its inline content is parsed here, so that a slow or failing block is the only one."""
    parser = _parser()
    stack: list[list[Any]] = [[]]  # from the root to the open element; an element left out is its parent once more
    for block_token in tokens:
        inline = block_token.type == "inline"
        for token in parser.inline.parse(block_token.content, parser, {}, []) if inline else (block_token,):
            if token.nesting > 0:
                stack.append(_open(token, stack))
            elif token.nesting < 0:
                _close(stack)
            else:
                stack[-1].append(_leaf(token))
    node: Node = stack[0][0]
    return node


def _open(token: "Token", stack: list[list[Any]]) -> list[Any]:
    """Return the element that a token opens, or its parent when it must not stand there: what it contains then stands in the parent."""
    parent = stack[-1]
    if token.hidden or token.tag not in TAGS or len(stack) > MAX_DEPTH - MAX_MATH_DEPTH:
        return parent
    if token.tag == "a" and any(element[:1] == ["a"] for element in stack):
        return parent
    element: list[Any] = [token.tag, _attributes(token)]
    if "checked" in token.meta:
        element.append("\u2611 " if token.meta["checked"] else "\u2610 ")
    parent.append(element)
    return element


def _close(stack: list[list[Any]]) -> None:
    element = stack.pop()
    if element is not stack[-1]:
        element[2:] = _joined(element[2:])
        if element[0] == "a" and len(element) == 2:
            element.append(element[1]["href"])  # a link without a text, or an image without a description


def _joined(nodes: Iterable[Node]) -> Iterator[Node]:
    """Yield the nodes with adjacent texts as one text."""
    for is_text, run in groupby(nodes, key=lambda node: isinstance(node, str)):
        if not is_text:
            yield from run
        elif text := "".join(run):  # type: ignore[arg-type]
            yield text


def _attributes(token: "Token") -> dict[str, str]:
    """Return the attributes that the page needs. No others that a token has reach it."""
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
    if token.type in ("text", "text_special"):
        return token.content
    if token.type == "softbreak":
        return "\n"
    if token.type == "code_inline":
        return ["code", {}, token.content]
    if token.type in ("fence", "code_block"):
        return _code(token.content, token.info)
    if token.type in ("math_inline", "math_block"):
        math = _math(token.content, "inline" if token.markup in ("$", r"\(") else "block")
        source: Node = ["code", {"data-language": "latex"}, token.content]
        return math or (source if token.type == "math_inline" else ["pre", {}, source])
    return [token.tag, {}]  # br, hr


# ---- code


def _code(code: str, info: str) -> Node:
    first = (info.split() or [""])[0].lower()
    language = first if re.fullmatch(r"[a-z0-9+#-]{1,30}", first) else ""
    highlighted = language in LANGUAGES and len(code) <= MAX_CODE_CHARACTERS
    content = _highlight(code, language) if highlighted else [code]
    return ["pre", {}, ["code", {"data-language": language} if language else {}, *content]]


def _highlight(code: str, language: str) -> list[Node]:
    """Highlight as much as HIGHLIGHT_SECONDS allow: most lexers take quadratic time on some texts, C's on blank lines."""
    from pygments.lexers import get_lexer_by_name  # type: ignore[import-untyped]
    from pygments.token import STANDARD_TYPES  # type: ignore[import-untyped]

    lexer = get_lexer_by_name(language, startinline=True)  # startinline: PHP without its opening tag
    deadline = time.thread_time() + HIGHLIGHT_SECONDS
    lexed = takewhile(lambda _: time.thread_time() < deadline, lexer.get_tokens_unprocessed(code))
    pieces = [(STANDARD_TYPES.get(kind, ""), text) for _, kind, text in lexed]
    pieces.append(("", code[sum(len(text) for _, text in pieces) :]))
    named = [(next((name for name in (short, short[:1]) if name in CODE_CLASSES), ""), text) for short, text in pieces]
    runs = [(name, "".join(text for _, text in run)) for name, run in groupby(named, itemgetter(0))]
    return [["span", {"class": name}, text] if name else text for name, text in runs if text]


# ---- formulas


# TeX that latex2mathml does not know, and what stands for it.
_TEX_SUBSTITUTES = (
    (r"\\(begin|end)\{(?:aligned|align|eqnarray)\*?\}", r"\\\1{align*}"),
    (r"\\(begin|end)\{(?:gathered|gather|multline)\*?\}", r"\\\1{matrix}"),
    (r"\\(begin|end)\{[dr]cases\}", r"\\\1{cases}"),
    (r"(\\operatorname\*?\{[^{}]*)\\,", r"\1 "),
    (r"\\arg(?![a-zA-Z])", r"\\operatorname{arg}"),
)
_OPERANDS = {"mfrac": 2, "mover": 2, "mroot": 2, "msub": 2, "msup": 2, "munder": 2, "msubsup": 3, "munderover": 3}
_IGNORED_ATTRIBUTES = frozenset({"xmlns", "mathcolor", "mathbackground"})


@lru_cache(maxsize=256)
def _math(tex: str, display: str) -> Node | None:
    """Return a formula as MathML, or None when it is not understood or contains more than a formula, such as links and styles.

    Callers must not change the node.
    """
    from latex2mathml.converter import convert_to_element

    if len(tex) > MAX_FORMULA_CHARACTERS or re.search(r"\\(?:def|newcommand|newenvironment)(?![a-zA-Z])", tex):
        return None  # nested macros grow exponentially
    for unknown, known in _TEX_SUBSTITUTES:
        tex = re.sub(unknown, known, tex)
    try:
        return _mathml(convert_to_element(tex, display=display), MAX_MATH_DEPTH)
    except Exception:  # latex2mathml raises IndexError, StopIteration, RecursionError and others
        return None


def _mathml(element: "Element", depth: int) -> Node:
    """Return the node of a MathML element. Raises ValueError for anything that is not in TAGS, and for TeX that was not understood."""
    attributes = {name: value for name, value in element.attrib.items() if name not in _IGNORED_ATTRIBUTES}
    text = re.sub(r"\\([%$#&_{}])", r"\1", unescape(element.text or ""))
    if (
        depth == 0
        or element.tag not in _MATHML
        or not _MATHML_ATTRIBUTES.issuperset(attributes)
        or not all(re.fullmatch(r"[a-zA-Z0-9.+ -]{0,60}", value) for value in attributes.values())
        or (element.tag == "mi" and re.fullmatch(r"\\[a-zA-Z]+|[&{}]", text))
    ):
        raise ValueError("not allowed in a formula")
    children: list[Node] = [_mathml(child, depth - 1) for child in element]
    surplus = len(children) - _OPERANDS.get(element.tag, len(children))
    if surplus < 0:
        raise ValueError("an operand is missing")
    if surplus > 0:  # latex2mathml does not group the parentheses of a matrix or binomial with their content
        children[: surplus + 1] = [["mrow", {}, *children[: surplus + 1]]]
    return [element.tag, attributes, *([text] if text else []), *children]


# ---- parser


def _href(url: str) -> str:
    """Return the address for a link, or "" unless it is plainly that of a web page or a mailbox.

    Characters that do not belong in an address are percent-encoded first. A percent sign, user name, backslash or non-ASCII letter in
    the host is then refused, and so is anything that hides the scheme.
    """
    scheme, colon, rest = quote(url[: MAX_URL_CHARACTERS + 1], safe="!#$%&'()*+,/:;=?@[]").partition(":")
    href = scheme.lower() + colon + rest
    host = r"(?:[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?\.?|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?"
    plain = re.fullmatch(rf"https?://{host}(?:[/?#].*)?|mailto:[^?@/]+@{host}(?:\?.*)?", href, re.IGNORECASE)
    return href if plain and len(url) <= MAX_URL_CHARACTERS else ""


@cache
def _parser() -> "MarkdownIt":
    from markdown_it import MarkdownIt

    class Parser(MarkdownIt):
        def normalizeLink(self, url: str) -> str:
            return _href(url)

        def normalizeLinkText(self, link: str) -> str:
            return link

        def validateLink(self, url: str) -> bool:
            return url != ""

    parser = Parser("zero", {"maxNesting": MAX_LEVEL + 2, "tasklists": True})
    parser.block.ruler.before("table", "deep", _deep)
    parser.block.ruler.before("fence", "math_block", _math_block, {"alt": ["paragraph", "blockquote", "list"]})
    parser.block.ruler.at("table", _table, {"alt": ["paragraph"]})
    parser.inline.ruler.before("escape", "math_inline", _math_inline)
    parser.inline.ruler.at("linkify", _bare_url)
    parser.inline.ruler.at("image", _image)
    parser.enable(["deep", "table", "code", "math_block", "fence", "blockquote", "hr", "list", "heading", "lheading"])
    parser.enable(["linkify", "newline", "math_inline", "escape", "backticks", "strikethrough", "emphasis"])
    parser.enable(["link", "image", "autolink", "entity"])
    parser.inline.terminator_re = _TEXT_END
    return parser


# What an inline rule may begin with. The parser's own expression stops at more characters, which makes prose a third slower.
_TEXT_END = re.compile(r"[\n*<\[\\\]_`~]|\$(?=[^\s$]|\$[^$])|!(?=\[)|&(?=[#a-zA-Z])|:(?=//)")


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


# The rules for math are not those of mdit-py-plugins, because with its dollarmath and texmath
# - a block is math only when its last line has arrived; until then an answer that streams has a list where a line of the formula is "- y";
# - \[ \] is found neither inside a paragraph nor directly after one, where models write it;
# - "in US$, A$ and NZ$" contains a formula;
# - many "\(" that are never closed take quadratic time.
_CLOSERS = {"$$": "$$", r"\[": r"\]", r"\(": r"\)"}
# One dollar opens a formula only when no letter, digit or space is beside it ("$5 and $6" has none). The bound keeps the time linear.
_DOLLARS = re.compile(rf"(?<![a-zA-Z0-9])\$(?![\s$])((?:[^$\\\n]|\\.){{1,{MAX_FORMULA_CHARACTERS}}}+)(?<!\s)\$(?!\d)")


def _math_block(state: "StateBlock", start: int, end: int, silent: bool) -> bool:
    r"""Parse `$$` or `\[` at the start of a line, up to the line that ends with its counterpart, or up to a blank line as a paragraph.

    The first line alone decides which kind of block it is, so that it does not change while it streams.
    """
    begin = state.bMarks[start] + state.tShift[start]
    opener = state.src[begin : begin + 2]
    if opener not in ("$$", r"\[") or state.is_code_block(start):
        return False
    first, found, rest = state.src[begin + 2 : state.eMarks[start]].partition(_CLOSERS[opener])
    if found and (rest.strip() or not first.strip()):
        return False
    if silent:  # may it interrupt a paragraph? Not when it closes a formula that began in the middle of a line.
        before = state.src[max(state.bMarks[state.line], begin - MAX_FORMULA_CHARACTERS) : begin]
        return bool(found) or opener != "$$" or before.count("$$") % 2 == 0
    line = start + 1
    while not found and line < end and not state.isEmpty(line) and state.sCount[line] >= state.blkIndent:
        _, found, rest = state.src[state.bMarks[line] : state.eMarks[line]].partition(_CLOSERS[opener])
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


def _math_inline(state: "StateInline", silent: bool) -> bool:
    opener = state.src[state.pos : state.pos + 2]
    if closer := _CLOSERS.get(opener):
        begin = state.pos + 2
        close = state.src.find(closer, begin, min(state.posMax, begin + MAX_FORMULA_CHARACTERS + 2))
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


# Not linkify-it-py: it reads on where Chinese or Japanese follows an address without a space and through Markdown's own signs, and
# markdown-it's rule for it takes quadratic time on addresses that are refused (5 s for 5,000).
_BARE_URL = re.compile(
    rf"://[^\s<>\"`*^{{|}}\\\[\]\u2e80-\u9fff\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef]{{1,{MAX_URL_CHARACTERS}}}"
)


def _bare_url(state: "StateInline", silent: bool) -> bool:
    """Parse https://example.org as a link, without the punctuation behind it. The parser calls the rule at the colon."""
    scheme = re.search(r"(?<![a-zA-Z0-9])https?$", state.src[max(0, state.pos - 6) : state.pos], re.IGNORECASE)
    rest = _BARE_URL.match(state.src, state.pos, state.posMax)
    if silent or not scheme or not rest or not state.pending.endswith(scheme[0]):
        return False
    punctuation = "?!.,:;_~'"
    url = (scheme[0] + rest[0]).rstrip(punctuation)
    while url.endswith(")") and url.count(")") > url.count("("):
        url = url[:-1].rstrip(punctuation)
    href = _href(url)
    if not href:
        return False
    state.pending = state.pending.removesuffix(scheme[0])
    state.push("link_open", "a", 1).attrs = {"href": href}
    state.push("text", "", 0).content = url
    state.push("link_close", "a", -1)
    state.pos += len(url) - len(scheme[0])
    return True


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
