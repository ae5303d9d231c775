r"""Formulas: where they begin and end in Markdown, and their MathML.

The rules for the parser are not those of mdit-py-plugins 0.7, because
- dollarmath, texmath and amsmath find a formula only when its last line has arrived; until then a list stands where a line of it is "- y";
- texmath finds \[ \] neither inside a paragraph nor directly after one, where models write it, and a formula in "in US$, A$ and NZ$";
- dollarmath and texmath take quadratic time on many "\(" that are never closed.

latex2mathml converts the formulas. It is imported at first use.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from html import unescape
from typing import TYPE_CHECKING, Any

from .tags import MATHML, MATHML_ATTRIBUTES

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    from markdown_it.rules_block import StateBlock
    from markdown_it.rules_inline import StateInline

MAX_DEPTH = 40
MAX_FORMULA_CHARACTERS = 2_000
MAX_BLOCK_CHARACTERS = 2 * MAX_FORMULA_CHARACTERS  # a block between the two limits is shown as its source

# ---- where a formula begins and ends

# Environments that are formulas also without delimiters around them.
_ENVIRONMENT = (
    r"(?:equation|align|alignat|flalign|gather|multline|eqnarray|(?:[pbvBV]|small)?matrix|cases|aligned|gathered)\*?"
)
_OPENER = re.compile(rf"\$\$|\\\[|\\\(|\\begin\{{{_ENVIRONMENT}\}}")
_CLOSERS = {"$$": "$$", r"\[": r"\]", r"\(": r"\)"}
_REST_OF_LINE_IS_BLANK = re.compile(r"[ \t]*(?:\n|\Z)")
# One dollar opens a formula only when no letter, digit or space is beside it ("$5 and $6" has none). A backtick may begin a code span,
# which takes precedence. The bound keeps the time linear.
_DOLLARS = re.compile(rf"(?<![a-zA-Z0-9])\$(?![\s$])((?:[^$\\\n`]|\\.){{1,{MAX_FORMULA_CHARACTERS}}}+)(?<!\s)\$(?!\d)")
# \[ \] within a line are brackets that were escaped, as in "list\[0\]", unless there is a sign of a formula between them.
_SIGN_OF_FORMULA = re.compile(r"\\[a-zA-Z]|[\^=<>+{]|\w_\w")
_ESCAPED_WORDS = re.compile(r"[^\W\d_]{3,}(?:[\s,.;:!?'-]+[^\W\d_]+)*[.!?]?")


def _closer(opener: str) -> str:
    return _CLOSERS.get(opener) or opener.replace("begin", "end", 1)


def parse_block(state: "StateBlock", start: int, end: int, silent: bool) -> bool:
    r"""Parse `$$`, `\[` or `\begin{align}` at the start of a line, up to the line that ends with its counterpart.

    Without that line, the lines up to a blank one are a paragraph.
    """
    begin = state.bMarks[start] + state.tShift[start]
    opening = _OPENER.match(state.src, begin, state.eMarks[start])
    if not opening or opening[0] == r"\(" or state.is_code_block(start):
        return False
    opener, closer = opening[0], _closer(opening[0])
    first, found, rest = state.src[opening.end() : state.eMarks[start]].partition(closer)
    if found and (rest.strip() or not first.strip()):
        return False
    is_escaped = _ESCAPED_WORDS.fullmatch(first.strip()) if found else not _SIGN_OF_FORMULA.search(first)
    if opener == r"\[" and first.strip() and is_escaped:
        return False
    if silent:  # may it interrupt a paragraph? Not when it closes a formula that began in the middle of a line.
        before = state.src[max(state.bMarks[state.line], begin - MAX_FORMULA_CHARACTERS) : begin]
        return bool(found) or opener != "$$" or before.count("$$") % 2 == 0
    line = start + 1
    last = start if found else _last_line_of_formula(state, opening.end(), closer, start, end)
    if last is not None:
        line = last + 1
    else:
        while line < end and not state.isEmpty(line) and state.sCount[line] >= state.blkIndent:
            line += 1
    state.line = line
    source = state.getLines(start, line, state.blkIndent, False).strip()
    if last is not None:
        token = state.push("math_block", "", 0)
        token.content = source[2:-2].strip() if opener in _CLOSERS else source
        token.markup, token.map = opener, [start, line]
    else:
        state.push("paragraph_open", "p", 1).map = [start, line]
        state.push("inline", "", 0).content = source
        state.push("paragraph_close", "p", -1)
    return True


def _last_line_of_formula(state: "StateBlock", begin: int, closer: str, start: int, end: int) -> int | None:
    """Return the line that ends a formula, which may contain blank lines, or None.

    Where the text ends too early to know, the block and all after it stay open.
    """
    close = state.src.find(closer, begin, begin + MAX_BLOCK_CHARACTERS)
    if close < 0:
        if len(state.src) < begin + MAX_BLOCK_CHARACTERS:
            state.env["open_from"] = min(start, state.env.get("open_from", start))
        return None
    close += len(closer)
    unreachable = state.env.setdefault("unreachable", set())  # so that no closer is looked for twice in vain
    if (close, state.blkIndent) in unreachable or not _REST_OF_LINE_IS_BLANK.match(state.src, close):
        return None
    for line in range(start + 1, end):
        if not state.isEmpty(line) and state.sCount[line] < state.blkIndent:
            break
        if close <= state.eMarks[line]:
            return line
    unreachable.add((close, state.blkIndent))
    return None


def parse_inline(state: "StateInline", silent: bool) -> bool:
    if opening := _OPENER.match(state.src, state.pos):
        opener, closer, begin = opening[0], _closer(opening[0]), opening.end()
        close = state.src.find(closer, begin, min(state.posMax, begin + MAX_FORMULA_CHARACTERS + len(closer)))
        formula, after = state.src[begin : max(begin, close)], close + len(closer)
        if "`" in formula or (opener == r"\[" and not _is_display(state, formula, after)):
            return False
        if formula.strip() and opener not in _CLOSERS:
            formula = opener + formula + closer
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


def _is_display(state: "StateInline", formula: str, after: int) -> bool:
    r"""Return whether \[ \] within a line surround a formula."""
    before = state.src[max(0, state.pos - 1) : state.pos]
    is_escaped = re.match(r"[a-zA-Z0-9]", before) or state.src[after : after + 1] in ("(", "[", ":")
    return not is_escaped and _SIGN_OF_FORMULA.search(formula) is not None


# ---- MathML

# TeX that latex2mathml does not know, and what stands for it.
_TEX_SUBSTITUTES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"\\(begin|end)\{alignat\*?\}(?:\{\d+\})?", r"\\\1{align*}"),
    (r"\\(begin|end)\{(?:aligned|align|eqnarray|flalign)\*?\}", r"\\\1{align*}"),
    (r"\\(begin|end)\{(?:gathered|gather|multline)\*?\}", r"\\\1{matrix}"),
    (r"\\(begin|end)\{[dr]cases\}", r"\\\1{cases}"),
    (r"(\\operatorname\*?\{[^{}]*)\\,", r"\1 "),
    (r"\\arg(?![a-zA-Z])", r"\\operatorname{arg}"),
    (r"\\label\{[^{}]*\}|\\(?:nonumber|notag)(?![a-zA-Z])", ""),
    (r"\\ce\{((?:[^{}]|\{[^{}]*\})*+)\}", lambda found: _chemistry(found[1])),
    (r"\\(?:SI|qty)\{([^{}]*)\}\{([^{}]*)\}", lambda found: rf"{_number(found[1])}\,{_unit(found[2])}"),
    (r"\\(?:si|unit)\{([^{}]*)\}", lambda found: _unit(found[1])),
    (r"\\num\{([^{}]*)\}", lambda found: _number(found[1])),
)
_CHEMICAL_ARROWS = {
    "->": r"\rightarrow ",
    "<-": r"\leftarrow ",
    "<->": r"\leftrightarrow ",
    "<=>": r"\rightleftharpoons ",
}
_UNIT_SYMBOLS = {
    "per": "/", "squared": "^{2}", "cubed": "^{3}", "square": "^{2}", "cubic": "^{3}", "kilo": "k", "mega": "M", "giga": "G",
    "milli": "m", "micro": "μ", "nano": "n", "centi": "c", "meter": "m", "metre": "m", "second": "s", "gram": "g",
    "kilogram": "kg", "newton": "N", "joule": "J", "watt": "W", "volt": "V", "ampere": "A", "ohm": "Ω", "hertz": "Hz",
    "kelvin": "K", "mole": "mol", "pascal": "Pa", "coulomb": "C", "liter": "L", "litre": "L", "minute": "min", "hour": "h",
    "celsius": "°C", "degreeCelsius": "°C", "degree": "°", "percent": r"\%", "electronvolt": "eV",
}  # fmt: skip


def _chemistry(formula: str) -> str:
    r"""Return TeX for the content of `\ce`: upright letters, indices, charges and arrows."""

    def piece(found: re.Match[str]) -> str:
        arrow, charge, index, letters = found.groups()
        if arrow:
            return _CHEMICAL_ARROWS[arrow]
        return rf"^{{{charge}}}" if charge else f"_{{{index}}}" if index else rf"\text{{{letters}}}"

    signs = r"(<=>|<->|->|<-)|(?:\^\{?|(?<=[A-Za-z0-9)\]]))(\d*[+-])(?![\w>])\}?|(?<=[A-Za-z)\]])(\d+)|([A-Za-z]+)"
    return re.sub(signs, piece, formula)


def _unit(unit: str) -> str:
    r"""Return TeX for a unit of siunitx: symbols for what is known of `\meter\per\second`, and names for the rest."""
    symbols = re.sub(r"\\([a-zA-Z]+)", lambda found: _UNIT_SYMBOLS.get(found[1], found[1]), unit)
    return re.sub(r"[^\W\d_]+", lambda found: rf"\text{{{found[0]}}}", symbols)


def _number(number: str) -> str:
    return re.sub(r"[eE]([+-]?\d+)", r"\\times 10^{\1}", number)


_OPERANDS = {"mfrac": 2, "mover": 2, "mroot": 2, "msub": 2, "msup": 2, "munder": 2, "msubsup": 3, "munderover": 3}
_IGNORED_ATTRIBUTES = frozenset({"xmlns", "mathcolor", "mathbackground"})


@lru_cache(maxsize=256)
def mathml(tex: str, display: str) -> list[Any] | None:
    """Return a formula as MathML, or None when it is not understood or contains more than a formula, such as links and styles.

    Callers must not change the node.
    """
    from latex2mathml.converter import convert_to_element

    if len(tex) > MAX_FORMULA_CHARACTERS or re.search(r"\\(?:def|newcommand|newenvironment)(?![a-zA-Z])", tex):
        return None  # nested macros grow exponentially
    for unknown, known in _TEX_SUBSTITUTES:
        tex = re.sub(unknown, known, tex)
    try:
        return _node(convert_to_element(tex, display=display), MAX_DEPTH)
    except Exception:  # latex2mathml raises IndexError, StopIteration, RecursionError and others
        return None


def _node(element: "Element", depth: int) -> list[Any]:
    """Return the node of a MathML element. Raises ValueError for anything that is not in TAGS, and for TeX that was not understood."""
    attributes = {name: value for name, value in element.attrib.items() if name not in _IGNORED_ATTRIBUTES}
    text = re.sub(r"\\([%$#&_{}])", r"\1", unescape(element.text or ""))
    if (
        depth == 0
        or element.tag not in MATHML
        or not MATHML_ATTRIBUTES.issuperset(attributes)
        or not all(re.fullmatch(r"[a-zA-Z0-9.+ -]{0,60}", value) for value in attributes.values())
        or (element.tag == "mi" and re.fullmatch(r"\\[a-zA-Z]+|[&{}]", text))
    ):
        raise ValueError("not allowed in a formula")
    children: list[Any] = [_node(child, depth - 1) for child in element]
    surplus = len(children) - _OPERANDS.get(element.tag, len(children))
    if surplus < 0:
        raise ValueError("an operand is missing")
    if surplus > 0:  # latex2mathml does not group the parentheses of a matrix or binomial with their content
        children[: surplus + 1] = [["mrow", {}, *children[: surplus + 1]]]
    return [element.tag, attributes, *([text] if text else []), *children]
