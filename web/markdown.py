"""Markdown as trees of nodes, from which the page builds elements.

A node is a text or a list `[tag, {attribute: value}, node, node, ...]`. Tags and attributes are those in static/tags.js; values are texts.

dialect.py has the parser, formulas.py makes MathML of TeX.

Highlighting, formulas and some hostile texts take long, so the service calls `render` in a sandbox child (renderer.py). markdown_it,
pygments and latex2mathml are imported at first use, which keeps the start of the service fast.
"""

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, groupby, pairwise, takewhile
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from . import dialect, formulas
from .tags import TAGS

if TYPE_CHECKING:
    from markdown_it.token import Token

Node: TypeAlias = str | list[Any]
Outline: TypeAlias = tuple[
    list[int], int
]  # where each top-level block of a text ends; how many of the blocks are closed

MAX_DEPTH = 100  # of the tree, with formulas
MAX_CODE_CHARACTERS = 20_000  # longer code is not highlighted; 500 lines
HIGHLIGHT_SECONDS = 0.1  # processor time; 500 lines take about as much

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
    """Return the node of a text that could not be formatted. Its line ends are LF, as in formatted code."""
    return ["pre", {"class": "unformatted"}, ["code", {}, _printable(re.sub(r"\r\n?", "\n", text))]]


def _printable(text: str) -> str:
    return re.sub(r"[\0\ud800-\udfff]", "\ufffd", text)


def _parse_blocks(text: str) -> tuple[list[list["Token"]], Outline]:
    """Return the tokens of each top-level block, with inline content still as text.

    A block is closed when the next one has begun, which takes one whole line, or two for a table. The last line may not be whole:
    "--" may become "---" or "--x". From the line `open_from` on, a formula has begun that may end in the text to come.
    """
    lines = re.split(r"(?<=\n)|(?<=\r)(?!\n)", text)
    offsets = list(accumulate(map(len, lines), initial=0))
    parser = dialect.parser()
    tokens: list[Token] = []
    env: dict[str, Any] = {}
    parser.block.parse(_printable("\n".join(line.rstrip("\r\n") for line in lines)), parser, env, tokens)
    firsts = [index for index, token in enumerate(tokens) if token.level == 0 and token.nesting >= 0]
    blocks = [tokens[first:after] for first, after in pairwise([*firsts, len(tokens)])]
    starts = [block[0].map[0] for block in blocks[1:] if block[0].map]
    ends = [offsets[line] for line in starts] + [len(text)] * bool(blocks)
    last_start = min(len(lines) - 3, env.get("open_from", len(lines)))
    return blocks, (ends, sum(line <= last_start for line in starts))


def _node(tokens: Sequence["Token"]) -> Node:
    """Return the node of a top-level block. Its inline content is parsed here, so that a slow or failing block is the only one."""
    parser = dialect.parser()
    stack: list[list[Any]] = [[]]  # from the root to the open element; an element left out is its parent once more
    for block_token in tokens:
        inline = block_token.type == "inline"
        for token in _pair_tags(parser.inline.parse(block_token.content, parser, {}, [])) if inline else (block_token,):
            if token.nesting > 0:
                stack.append(_open(token, stack))
            elif token.nesting < 0:
                _close(stack)
            else:
                stack[-1].append(_leaf(token))
    node: Node = stack[0][0]
    return node


def _pair_tags(tokens: list["Token"]) -> list["Token"]:
    """Turn the tags of HTML that are closed in the element in which they are opened into elements. The others stay text."""
    opened: list[Token] = []
    for token in tokens:
        if token.type == "tag_open" or token.nesting > 0:
            opened.append(token)
        elif token.type == "tag_close":
            if opened and opened[-1].type == "tag_open" and opened[-1].tag == token.tag:
                opened.pop().nesting, token.nesting = 1, -1
        elif token.nesting < 0:
            while opened.pop().type == "tag_open":
                pass
    return tokens


def _open(token: "Token", stack: list[list[Any]]) -> list[Any]:
    """Return the element that a token opens, or its parent when it must not stand there: what it contains then stands in the parent."""
    parent = stack[-1]
    if token.hidden or token.tag not in TAGS or len(stack) > MAX_DEPTH - formulas.MAX_DEPTH:
        return parent
    if token.tag == "a" and any(element[:1] == ["a"] for element in stack):
        return parent
    attributes = _attributes(token)
    is_link = dialect.safe_href(attributes.get("href", "http://a")) != ""
    element: list[Any] = [token.tag if is_link else "span", attributes]
    if "checked" in token.meta:
        element.append("\u2611 " if token.meta["checked"] else "\u2610 ")
    if token.type == "footnote_open":
        element.append(["a", {}, token.meta["text"]])
    parent.append(element)
    return element


def _close(stack: list[list[Any]]) -> None:
    element = stack.pop()
    if element is stack[-1]:
        return
    element[2:] = _joined(element[2:])
    href = element[1].get("href")
    if element[0] == "span" and href is not None:
        element[1:] = [{}, *_joined([*element[2:], f" ({href})" if href and element[2:] != [href] else ""])]
    elif href and len(element) == 2:
        element.append(href)  # a link without a text, or an image without a description


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
        return {"href": str(token.attrs["href"])} if token.attrs else {}
    if token.type == "alert_open":
        return {"class": f"alert {token.meta['kind'].lower()}"}
    if token.type == "footnote_open":
        return {"class": "footnote", "data-label": token.meta["label"]}
    if token.type == "definition_open":
        return {"class": "definition", "data-label": token.meta["label"], "data-address": token.meta["address"]}
    if token.type == "reference_open":
        return {"data-reference": token.meta["reference"]}
    if token.type == "details_open" and token.meta["open"]:
        return {"open": ""}
    if token.tag == "ol" and "start" in token.attrs:
        return {"start": str(token.attrs["start"])}
    if token.tag in ("td", "th") and "style" in token.attrs:
        return {"align": str(token.attrs["style"]).removeprefix("text-align:")}
    if token.tag == "li" and "checked" in token.meta:
        return {"class": "task"}
    return {}


def _leaf(token: "Token") -> Node:
    if token.type in ("text", "text_special", "tag_open", "tag_close"):
        return token.content
    if token.type == "bracket":
        return ["span", {}, token.content]
    if token.type == "softbreak":
        return "\n"
    if token.type == "code_inline":
        return ["code", {}, token.content]
    if token.type in ("fence", "code_block"):
        return _code(token.content, token.info)
    if token.type in ("math_inline", "math_block"):
        math = formulas.mathml(token.content, "inline" if token.markup in ("$", r"\(") else "block")
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
