"""Source code that is slow to highlight: what programs repeat, open and do not close, written out many times."""

import itertools

from pygments.lexers import get_lexer_by_name  # type: ignore[import-untyped]

CHARACTERS = 19_999  # with the end of its line as many as are highlighted
# The slowest that were found in the regular expressions of the lexers: beginning, repeated text, end. One step of the lexer takes seconds.
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
REPEATED = (
    " ", "\n", "\t", "\\", "\\\n", '"', "'", "`", '"""', "\\'", "(", "[", "{", "<", "()", "/*", "//", "<!--", "<![CDATA[", "#", "#|", "(*", "{-",
    "%", "{{", "{%", "${", "#{", "$((", "<<A\n", "a", "a ", "a.", "a::", 'a="', "a(", "a<", "a\n", "_", "-", "=", "@", "$", "&", ";", "0", "1_",
    "\u00e9", "\U0001f600", 'r#"', '@"', "begin ", "if ", "<a ", "<?php ", "[[", "[=[", "a: b\n", "- ", "\r",
)  # fmt: skip


def inputs(language: str) -> list[str]:
    """Return texts for a language, the slowest first."""
    lexer = type(get_lexer_by_name(language))
    recipes = [recipe for name, recipe in SLOW.items() if type(get_lexer_by_name(name)) is lexer]
    for repeated, (before, after) in itertools.product(REPEATED, (("", ""), ("x", "!"))):
        recipes.append((before, repeated, after))
    return [
        before + repeated * ((CHARACTERS - len(before + after)) // len(repeated)) + after
        for before, repeated, after in recipes
    ]


def fenced(language: str, code: str) -> str:
    """Return Markdown with this code in a block that no line of it ends."""
    fence = ("`" if "~~~" in code else "~") * 20
    return f"{fence}{language}\n{code}\n{fence}\n\n"
