"""Source code that is slow to highlight, for every language: made from the regular expressions of its own lexer.

A backtracking match is slow where a repeated part can be followed by a character that breaks it, and quadratic where the same
is tried again at every position. So each repetition in each expression is written out many times, behind what leads to it and before
a character that no rule expects.
"""

import itertools
import re
from collections.abc import Iterator
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

from pygments.lexer import DelegatingLexer  # type: ignore[import-untyped]
from pygments.lexers import get_lexer_by_name  # type: ignore[import-untyped]

CHARACTERS = 19_999  # of an input; with the end of its line as many as are highlighted
INPUTS = 200  # a language
MEMBERS = 4  # of a set of characters that are tried
MANY = 50  # repetitions from which on a repeat counts as unbounded
BREAKERS = ("!", "\0", "\n", "x", "")
# What programs repeat, open and do not close.
PUMPS = (
    " ", "\n", "\t", " \n", "\\", "\\\n", '"', "'", "`", '""', "''", '"""', "'''", '\\"', "(", "[", "{", "<", ")", "()", "[]", "{}", "<>",
    "/*", "//", "*/", "/**", "<!--", "<![CDATA[", "--", "#", "#!", "#|", "(*", "{-", "%", "%{", "{{", "{%", "${", "#{", "`${", "$(",
    "$((", "<<A\n", "<<'A'\n", "a", "a ", "a.", "a,", "a:", "a::", "a=", "a=\"", "a(", "a<", "a b ", "a\n", "A", "_", "-", "+", "=", "@",
    "$", "&", "&amp", ";", ":", "?", "|", "~", "^", "0", "1 ", "0x", "1.", "1e", "1_", "0b", "\u00e9", "\U0001f600", "/a", "/", "r#\"", "@\"",
    "begin ", "if ", "<a ", "<a>", "<?php ", "\\a{", "[[", "[=[", "a: b\n", "- ", "a -> ", "\r",
)  # fmt: skip


# The slowest that were found: what begins, what is repeated, what ends. On most of them one step of the lexer takes seconds.
SLOW = {
    "c": ("x", " ", "!"),
    "cpp": ("namespace{a", " ", ""),
    "objective-c": ("a", " ", "\0"),
    "docker": ("VOLUME", " ", "!"),
    "bash": ("$'", "\\", "!"),
    "terraform": ("backend", " ", "\n"),
    "python": ('"%', "0", "!"),
    "scala": ('raw"', "\\", "x"),
    "r": ("'", "a", "!"),
    "perl": ("s!", "\\", ""),
    "php": ("<?${", "$", "\n"),
    "fortran": ('"\\', "0", "\0"),
    "java": ("", "\n", ""),
    "make": ("", "{", ""),
    "css": ("{-a", "--a", "\0"),
    "nix": ("", "\u00e9", ""),
    "csharp": ("", "a\n", ""),
    "julia": ('"%', "0", "\n"),
}


Recipe = tuple[str, str, str]  # what begins, what is repeated, what ends


def inputs(language: str, count: int = INPUTS, lengths: tuple[int, ...] = (CHARACTERS,)) -> list[str]:
    """`count` texts, always the same ones, the slowest first; of up to so many characters, the lengths in turn."""
    lexer = type(get_lexer_by_name(language))
    slow = [recipe for name, recipe in SLOW.items() if type(get_lexer_by_name(name)) is lexer]
    rules, generic = (list(dict.fromkeys(made)) for made in (_from_rules(language), _generic()))
    half = (count - len(slow)) // 2
    recipes = (
        slow + _spread(rules, max(half, 2 * half - len(generic))) + _spread(generic, max(half, 2 * half - len(rules)))
    )
    return [_write(recipe, lengths[number % len(lengths)]) for number, recipe in enumerate(recipes)]


def fenced(language: str, code: str) -> str:
    """Markdown with this code in a block that no line of it ends."""
    fence = ("`" if "~~~" in code else "~") * 20
    return f"{fence}{language}\n{code}\n{fence}\n\n"


def shown(code: str) -> str:
    """The code as a page shows it."""
    return code.replace("\r", "\n").replace("\0", "\ufffd")


def _write(recipe: Recipe, length: int) -> str:
    before, pump, after = recipe
    return before + pump * ((length - len(before + after)) // len(pump)) + after


def _spread(recipes: list[Recipe], count: int) -> list[Recipe]:
    return recipes if len(recipes) <= count else [recipes[number * len(recipes) // count] for number in range(count)]


def _generic() -> Iterator[Recipe]:
    for pump, (before, after) in itertools.product(PUMPS, (("", ""), ("x", "!"))):
        yield before, pump, after


def _from_rules(language: str) -> Iterator[Recipe]:
    breakers = itertools.cycle(BREAKERS)
    for lead, pattern in _patterns(get_lexer_by_name(language, startinline=True)):
        for before, body in _repeats(parser.parse(pattern.pattern, pattern.flags)):
            for start, pump in ((lead + before, body), (lead, before + body)):
                if pump:
                    yield start, pump, next(breakers)


def _patterns(lexer: Any) -> Iterator[tuple[str, re.Pattern[str]]]:
    """Every expression of a lexer, with a text that leads to its state."""
    if isinstance(lexer, DelegatingLexer):
        yield from _patterns(lexer.root_lexer)
        yield from _patterns(lexer.language_lexer)
        return
    states = getattr(lexer, "_tokens", {})
    leads, waiting = {"root": ""}, ["root"]
    for state in waiting:
        for match, _, following in states.get(state, ()):
            pattern = match.__self__
            yield leads[state], pattern
            names = following if isinstance(following, tuple) else (following,)
            for name in names:
                if isinstance(name, str) and name in states and name not in leads:
                    leads[name] = leads[state] + _sample(parser.parse(pattern.pattern, pattern.flags))
                    waiting.append(name)


def _repeats(parsed: Any) -> Iterator[tuple[str, str]]:
    """Each unbounded repetition of an expression: what comes before it, and what it repeats."""
    before = ""
    for code, argument in parsed:
        if code in (codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT):
            _, most, body = argument
            if most is codes.MAXREPEAT or most >= MANY:
                yield from ((before, sample) for sample in _samples(body))
            yield from ((before + inner, sample) for inner, sample in _repeats(body))
        elif code is codes.SUBPATTERN:
            yield from ((before + inner, sample) for inner, sample in _repeats(argument[3]))
        elif code is codes.ATOMIC_GROUP:
            yield from ((before + inner, sample) for inner, sample in _repeats(argument))
        elif code is codes.BRANCH:
            for branch in argument[1]:
                yield from ((before + inner, sample) for inner, sample in _repeats(branch))
        elif code in (codes.ASSERT, codes.ASSERT_NOT):
            yield from ((before + inner, sample) for inner, sample in _repeats(argument[1]))
        before += _sample([(code, argument)])


def _samples(body: Any) -> Iterator[str]:
    """Texts that a repeated part matches: one for each member of a set of characters."""
    if len(body) == 1 and body[0][0] is codes.IN:
        yield from [sample for sample in map(_character, body[0][1][:MEMBERS]) if sample] or [_sample(body)]
    else:
        yield _sample(body)


def _sample(parsed: Any) -> str:
    """A text that an expression matches, apart from what it looks ahead or back for."""
    text = ""
    for code, argument in parsed:
        if code is codes.LITERAL:
            text += chr(argument)
        elif code is codes.NOT_LITERAL:
            text += "b" if argument == ord("a") else "a"
        elif code is codes.ANY:
            text += "a"
        elif code is codes.IN:
            text += _member(argument)
        elif code is codes.BRANCH:
            text += _sample(argument[1][0])
        elif code is codes.SUBPATTERN:
            text += _sample(argument[3])
        elif code is codes.ATOMIC_GROUP:
            text += _sample(argument)
        elif code in (codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT):
            text += _sample(argument[2]) * max(1 if argument[0] else 0, min(argument[0], MANY))
    return text


def _member(members: Any) -> str:
    """A character of a set, or one outside it when it is negated."""
    if members[0][0] is codes.NEGATE:
        excluded = re.compile("[" + "".join(map(_source, members[1:])) + "]")
        return next(character for character in "a1 _-\n\u00e9\u4e00" if not excluded.match(character))
    return _character(members[0])


def _character(member: Any) -> str:
    code, argument = member
    if code is codes.LITERAL:
        return chr(argument)
    if code is codes.RANGE:
        return chr(argument[0])
    if code is codes.CATEGORY:
        return {codes.CATEGORY_SPACE: " ", codes.CATEGORY_DIGIT: "1", codes.CATEGORY_NOT_WORD: "-"}.get(argument, "a")
    return ""


def _source(member: Any) -> str:
    code, argument = member
    if code is codes.LITERAL:
        return re.escape(chr(argument))
    if code is codes.RANGE:
        return f"{re.escape(chr(argument[0]))}-{re.escape(chr(argument[1]))}"
    names = {
        codes.CATEGORY_SPACE: r"\s", codes.CATEGORY_NOT_SPACE: r"\S", codes.CATEGORY_DIGIT: r"\d",
        codes.CATEGORY_NOT_DIGIT: r"\D", codes.CATEGORY_WORD: r"\w", codes.CATEGORY_NOT_WORD: r"\W",
    }  # fmt: skip
    return names[argument]
