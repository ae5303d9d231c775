"""The nodes of each construct, that no markup gets through, that a streamed text ends like a whole one, and that time is linear."""

import gc
import html
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec
import pytest
from fireside.web import markdown as module
from fireside.web.tags import TAGS
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ..payloads import ADDRESSES, HTML, LINKS, PLACES
from ..trials import FULL, TRIALS

EXAMPLES = 100 if TRIALS >= FULL else 30
OPERANDS = {"mfrac": 2, "mover": 2, "mroot": 2, "msub": 2, "msup": 2, "munder": 2, "msubsup": 3, "munderover": 3}
VALUES = {
    "href": r"https?://[!-~]+|mailto:[!-~]+",
    "class": "task|footnote|definition|alert (note|tip|important|warning|caution)|[a-z]{1,2}",
    "data-label": r"(?s).+",
    "data-reference": r"(?s).+",
    "data-address": r"https?://[!-~]+|mailto:[!-~]+",
    "data-language": r"[a-z0-9+#-]{1,30}",
    "start": r"[0-9]{1,9}",
    "align": "left|center|right",
}


class Block(NamedTuple):
    end: int
    closed: bool
    node: Any


def blocks(markdown: str) -> list[Block]:
    outline, *nodes = module.render(markdown)
    ends, closed = msgspec.msgpack.decode(outline)
    assert len(ends) == len(nodes)
    return [
        Block(end, index < closed, json.loads(node)) for index, (end, node) in enumerate(zip(ends, nodes, strict=True))
    ]


def nodes(markdown: str) -> list[Any]:
    return [block.node for block in blocks(markdown)]


def elements(tree: list[Any]) -> Iterator[list[Any]]:
    """Yield every element, after checking it by rules of the tests' own."""
    waiting = [(node, 1, "") for node in tree]
    while waiting:
        node, depth, parent = waiting.pop()
        assert depth <= 100
        if isinstance(node, str):
            assert not re.search("[\0\ud800-\udfff]", node)
            continue
        tag, attributes, *children = node
        assert tag in TAGS
        assert TAGS[tag] >= attributes.keys()
        assert len(children) == OPERANDS.get(tag, len(children))
        assert tag.startswith("m") == (tag == "math" or parent.startswith("m"))
        for name, value in attributes.items():
            assert isinstance(value, str)
            assert re.fullmatch(VALUES.get(name, r"[A-Za-z0-9.+ -]*"), value), (name, value)
        yield node
        waiting += [(child, depth + 1, tag) for child in children]


def find(markdown: str, tag: str) -> list[Any]:
    found = [element for element in elements(nodes(markdown)) if element[0] == tag]
    return [element for element in found if tag != "a" or element[1]]  # an <a> without an address is no link


def text(node: Any) -> str:
    return node if isinstance(node, str) else "".join(text(child) for child in node[2:])


def shown(markdown: str) -> str:
    return "".join(text(node) for node in nodes(markdown))


def markup(node: Any) -> str:
    if isinstance(node, str):
        return html.escape(node, quote=False)
    attributes = "".join(f' {name}="{value}"' for name, value in node[1].items())
    return f"<{node[0]}{attributes}>{''.join(markup(child) for child in node[2:])}</{node[0]}>"


# ---- each construct


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("", ""),
        ("a *b* _c_ **d** ~~e~~", "<p>a <em>b</em> <em>c</em> <strong>d</strong> <s>e</s></p>"),
        ("one\ntwo  \nthree\\\nfour", "<p>one\ntwo<br></br>three<br></br>four</p>"),
        ("one\r\ntwo\rthree", "<p>one\ntwo\nthree</p>"),
        (r"\*a\* &amp; &lt;b&gt; &#x41;", "<p>*a* &amp; &lt;b&gt; A</p>"),
        ("# one\n###### six", "<h1>one</h1><h6>six</h6>"),
        ("`` a`b ``", "<p><code>a`b</code></p>"),
        ("```\n<a>\n```", "<pre><code>&lt;a&gt;\n</code></pre>"),
        ("<a>x</a> <!-- y -->", "<p>&lt;a&gt;x&lt;/a&gt; &lt;!-- y --&gt;</p>"),
        ("~~~Brainfuck x\n+", '<pre><code data-language="brainfuck">+</code></pre>'),
        ("- a\n  1. b", "<ul><li>a<ol><li>b</li></ol></li></ul>"),
        ("7. a\n8. b", '<ol start="7"><li>a</li><li>b</li></ol>'),
        ("- [ ] a\n- [x] b\n- [y]", '<ul><li class="task">☐ a</li><li class="task">☑ b</li><li>[y]</li></ul>'),
        ("> a\nb\n> > c", "<blockquote><p>a\nb</p><blockquote><p>c</p></blockquote></blockquote>"),
        (
            "|a|b|\n|:-:|-|\n|*1*|\n",
            '<table><thead><tr><th align="center">a</th><th>b</th></tr></thead>'
            '<tbody><tr><td align="center"><em>1</em></td><td></td></tr></tbody></table>',
        ),
        ("[*a*](http://b.c/d?e=f#g 'title')", '<p><a href="http://b.c/d?e=f#g"><em>a</em></a></p>'),
        ("[a](<http://b.c/d e>)", '<p><a href="http://b.c/d%20e">a</a></p>'),
        ("[a](HTTPS://b.c/ü)", '<p><a href="https://b.c/%C3%BC">a</a></p>'),
        ("[](http://b.c)", '<p><a href="http://b.c">http://b.c</a></p>'),
        ("<http://b.c/%41>", '<p><a href="http://b.c/%41">http://b.c/%41</a></p>'),
        ("<d@e.f>", '<p><a href="mailto:d@e.f">d@e.f</a></p>'),
        ("![*a*](http://b.c/d.png)", '<p><a href="http://b.c/d.png"><em>a</em></a></p>'),
        ("![](http://b.c)", '<p><a href="http://b.c">http://b.c</a></p>'),
        ("[![a](http://b.c)](http://d.e)", '<p><a href="http://d.e">a</a></p>'),
        ("a\n|b|\n|-|", "<p>a</p><table><thead><tr><th>b</th></tr></thead></table>"),
        ("$$\nx _y_", "<p>$$\nx <em>y</em></p>"),
        ("$$\nx\n\ny", "<p>$$\nx</p><p>y</p>"),
        ("- $$\nx", "<ul><li>$$</li></ul><p>x</p>"),
        ("a\0b\ud800c", "<p>a\ufffdb\ufffdc</p>"),
    ],
)
def test_construct_becomes_its_element(markdown: str, expected: str) -> None:
    assert "".join(markup(node) for node in nodes(markdown)) == expected


@pytest.mark.parametrize(
    ("markdown", "address"),
    [
        ("see https://a.b/c_d_e/f.", "https://a.b/c_d_e/f"),
        ("(https://en.wikipedia.org/wiki/A_(b))", "https://en.wikipedia.org/wiki/A_(b)"),
        ("**http://a.b/**, and **so on**", "http://a.b/"),
        ("参见https://a.b/c。更多", "https://a.b/c"),
        ("https://a.b/__init__.py", "https://a.b/__init__.py"),
        ("https://a.b/?x=1&y=2#z!?", "https://a.b/?x=1&y=2#z"),
        ("~~https://a.b/c~~", "https://a.b/c"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/"),
    ],
)
def test_bare_address_is_a_link_without_the_punctuation_around_it(markdown: str, address: str) -> None:
    assert find(markdown, "a") == [["a", {"href": address}, address]]
    assert shown(markdown) == markdown.replace("**", "").replace("~~", "")


def test_text_like_a_bare_address_stays_text() -> None:
    for word in (
        "http://",
        "xhttp://a.b",
        "http:/a.b",
        "`http://a.b`",
        "ftp://a.b",
        "http://a@b.c",
        "main.py",
        "d@e.f",
    ):
        assert find(word, "a") == [], word


# ---- math


@pytest.mark.parametrize(
    ("markdown", "display"),
    [
        ("$x$", "inline"),
        (r"\(x\)", "inline"),
        ("$$x$$", "block"),
        (r"\[x\]", "block"),
        ("$$\nx\n$$", "block"),
        ("before\n\\[\nx\n\\]\nafter", "block"),
        ("before $$\nx\n$$ after", "block"),
        ("- item\n\n  $$\n  x\n  $$", "block"),
        ("> $$\n> x\n> $$", "block"),
        ("|a|\n|-|\n|$x$|", "inline"),
        ("*$x$*", "inline"),
    ],
)
def test_every_delimiter_of_math(markdown: str, display: str) -> None:
    assert find(markdown, "math") == [["math", {"display": display}, ["mrow", {}, ["mi", {}, "x"]]]]


@pytest.mark.parametrize(
    "markdown",
    [
        "$5 and $10", "US$5, CA$ seven", "in US$, A$ and NZ$", "$5-$6", r"\$x$", "$ x$", "$x $", "`$x$`",
        "$$$$", r"\(\)", "$$\nx", "$x\ny$", r"\\(x\\)",
    ],
)  # fmt: skip
def test_currency_and_escaped_delimiters_are_not_math(markdown: str) -> None:
    assert find(markdown, "math") == []


@pytest.mark.parametrize(
    "tex",
    [
        r"\frac{a}{b}", r"\begin{aligned} a &= b \\ c &= d \end{aligned}",
        r"\begin{pmatrix} a \\ b \end{pmatrix}^\top",
        r"\begin{cases} 1 & x > 0 \\ 0 & \text{otherwise} \end{cases}", r"\binom{n}{k}^2",
        r"\sum_{i=1}^n \int_0^\infty e^{-x}\,dx",
        r"\operatorname*{arg\,max}_\theta \mathbb{E}[X] \in \mathbb{R}^n",
        r"\arg\min_x \left\| Ax - b \right\|_2^2", r"\boxed{x = \frac{-b \pm \sqrt{b^2 - 4ac}}{2a}}",
        r"\text{50\% off} \quad \color{red}{x} \implies \hat{y}",
        r"\begin{array}{c|c} a & b \\ \hline c & d \end{array}",
    ],
)  # fmt: skip
def test_usual_formulas_are_understood(tex: str) -> None:
    (math,) = find(f"$${tex}$$", "math")
    assert "\\" not in text(math)
    assert not set(text(math)) & set("&*}")


def test_lines_of_a_formula_are_not_parsed_as_headings_or_lists() -> None:
    assert [node[0] for node in nodes("a\n$$\nx\n=\n- y\n$$\nb")] == ["p", "math", "p"]
    assert markup(nodes("$$\\def\\a{x}$$ is\na macro")[0]) == (
        '<p><code data-language="latex">\\def\\a{x}</code> is\na macro</p>'
    )


@pytest.mark.parametrize(
    "tex",
    [
        r"\href{javascript:alert(1)}{x}", r"\href{https://evil.example}{x}", r"\class{login}{x}",
        r"\style{position:fixed}{x}", r"\htmlId{csrf}{x}", r"\cssId{csrf}{x}", r"\htmlData{a=b}{x}",
        r"\includegraphics{https://evil.example/x.png}", r"\url{javascript:alert(1)}", r"\unknown",
        r"\def\a{\a\a}\a", r"\newcommand{\a}{xx}\newcommand{\b}{\a\a}\b",
        r"\newenvironment{a}{\begin{a}}{\end{a}}\begin{a}\end{a}", r"\frac{1}", r"\left(", r"\text{a {b} c}",
        "x" * 2001, "{" * 900 + "x" + "}" * 900, r"\sqrt{" * 60 + "x" + "}" * 60,
    ],
)  # fmt: skip
def test_tex_that_is_not_a_formula_is_shown_as_source(tex: str) -> None:
    markdown = f"$$\n{tex}\n$$"
    assert find(markdown, "math") == []
    assert shown(markdown) == tex


def test_markup_in_a_formula_is_text() -> None:
    tex = r"\text{<img src=x onerror=alert(1)>} < \unicode{x3C} \text{&lt;script&gt;}"
    (math,) = find(f"$${tex}$$", "math")
    assert text(math).replace("\xa0", " ") == "<img src=x onerror=alert(1)><<<script>"


# ---- code


def test_code_is_highlighted_and_its_text_unchanged() -> None:
    source = 'def f(x):  # why\n    return "a" + 1\n'
    (code,) = find(f"```python\n{source}```", "code")
    assert code[1] == {"data-language": "python"}
    assert ["span", {"class": "k"}, "def"] in code
    assert ["span", {"class": "nf"}, "f"] in code
    assert ["span", {"class": "c"}, "# why"] in code
    assert text(code) == source


def test_long_code_and_unknown_languages_are_not_highlighted() -> None:
    for language, source in (("python", "x = 1\n" * 5000), ("klingon", "x = 1\n")):
        markdown = f"```{language}\n{source}```"
        assert nodes(markdown) == [["pre", {}, ["code", {"data-language": language}, source]]]


# ---- streaming


LINES = [
    "a\n", "b *c*\n", "\n", "\n\n", "# h\n", "---\n", "===\n", "- a\n", "- b\n", "  c\n", "    d\n", "* e\n", "-\n",
    "1. f\n", "2) g\n", "10. \n", "> q\n", ">\n", "> - r\n", "> ```\n", "```\n", "```py\n", "~~~\n", "x = 1\n",
    "|a|b|\n", "|-|-|\n", "a|b\n", "-|-\n", "|1\n", "$$\n", "$$x$$\n", "\\[\n", "x \\]\n", "\\]\n", "$$ y\n",
    "[r]: http://a.b\n", "[r]\n", "[r][r]\n", "  - [x] t\n", "<div>\n", "</div>\n", "<!--\n", "\t- i\n", " \t\n",
    "a\r\n", "\r", "\U0001f600 b\n", "    \n", "a  \n", "***\n", "+ \n\n", "   > s\n",
    "<details>\n", "<details open><summary>s</summary>\n", "<summary>*s*</summary> t\n", "</details>\n", "x</details>\n", "</details> y\n",
    "  <details>\n", "[^1]: n\n", "[^1] [a][r]\n", "\\begin{align}\n", "x &= 1 \\end{align}\n", "\\end{align}\n",
    "> [!NOTE]\n", "a<br>b <sub>c</sub>\n", "$$\n\n",
]  # fmt: skip


def streamed(markdown: str) -> list[Any]:
    """Render as the page does: after every character, closed blocks are kept and only the rest is rendered again."""
    kept: list[Any] = []
    start = 0
    tail: list[Block] = []
    for length in range(len(markdown) + 1):
        tail = blocks(markdown[start:length])
        done = [block for block in tail if block.closed]
        assert tail[: len(done)] == done
        kept += [block.node for block in done]
        start += done[-1].end if done else 0
    return kept + [block.node for block in tail if not block.closed]


@settings(max_examples=EXAMPLES)
@given(
    st.lists(st.sampled_from(LINES), max_size=9).map("".join)
    | st.text(alphabet=" \n\t-`>|#*+=:~$\\[]1.)ax\r\U0001f600", max_size=40)
)
@example("- a\n\n  b\n\n\nc\n\n- d\n- e\n\n- f\n")
@example("text\na|b\n-|-\n1|2\n\nd|e\n-|-x\n")
@example("text\na|b\n-|-x\n")
@example("$$\na\n# b\n\n$$\n")
@example("$$\na\n- b\nc\n$$\n")
@example("> a\nb|c\n-|-\n\n[a]\n\n[a]: http://b.c\n")
def test_streamed_text_ends_like_a_text_that_is_rendered_at_once(markdown: str) -> None:
    assert streamed(markdown) == nodes(markdown)


@settings(max_examples=EXAMPLES)
@given(st.lists(st.sampled_from(LINES), max_size=12).map("".join))
def test_blocks_cover_the_text_and_each_renders_alone(markdown: str) -> None:
    start = 0
    for block in blocks(markdown):
        assert nodes(markdown[start : block.end]) == [block.node]
        start = block.end
    assert nodes(markdown[start:]) == []


def test_only_the_last_block_of_a_growing_answer_is_open() -> None:
    answer = "".join(
        f"## Part {n} \U0001f600\n\nWords.\n\n- a\n\n- b\n\n```py\nx = {n}\n```\n\n|a|\n|-|\n|b|\n\n" for n in range(6)
    )
    for length in range(0, len(answer), 7):
        assert length - max((block.end for block in blocks(answer[:length]) if block.closed), default=0) < 60
    assert [block.closed for block in blocks(answer)] == [True] * 29 + [False]


# ---- no markup


@pytest.mark.parametrize("address", ADDRESSES)
def test_address_that_is_not_plainly_of_web_or_mail_is_no_link(address: str) -> None:
    for link in LINKS:
        for element in find(link.replace("§", address), "a"):  # at most its beginning, shown as it is
            assert element[2:] == [element[1]["href"]], link
            assert address.startswith("http://")


@pytest.mark.parametrize("place", PLACES)
def test_markup_is_text_everywhere(place: str) -> None:
    for payload in HTML:
        for element in elements(nodes(place.replace("§", payload))):
            assert not element[1].get("href") or urlsplit(element[1]["href"]).hostname in (
                "a.b",
                "canary.example",
                "www.w3.org",
            )


@pytest.mark.parametrize(
    "info",
    ["__proto__", "a\"onclick='x'", "py<script>", "{.py #id onclick=x}", "python;x", "ÿ", "x" * 31, "../x", "\u017f"],
)
def test_language_is_a_plain_word_or_left_out(info: str) -> None:
    (code,) = find(f"~~~{info}\nx\n~~~", "code")
    assert code[1] == {}
    assert text(code) == "x\n"


def test_no_allowed_tag_or_attribute_runs_a_script_or_fetches() -> None:
    attributes = {name for names in TAGS.values() for name in names}
    assert not {name for name in attributes if re.match("on|style|id$|name|src|action|xlink", name)}
    assert TAGS.keys().isdisjoint(["script", "style", "img", "svg", "iframe", "form", "input", "mglyph", "maction"])
    assert [tag for tag, names in TAGS.items() if "href" in names] == ["a"]


fragments = st.sampled_from(
    [*LINES, *HTML, *(link.replace("§", address) for link in LINKS[:8] for address in ADDRESSES[::5])]
) | st.text(max_size=8)


@settings(max_examples=2 * EXAMPLES)
@given(st.lists(fragments, max_size=12).map("".join))
def test_every_text_makes_allowed_nodes_only(markdown: str) -> None:
    for element in elements(nodes(markdown)):
        if href := element[1].get("href") or element[1].get("data-address"):
            address = urlsplit(href)
            assert address.scheme in ("http", "https", "mailto")
            assert address.scheme == "mailto" or (address.hostname and address.username is None)


TEX = [
    "\\", "{", "}", "^", "_", "&", "\\\\", "'", "\\left", "\\right", "(", "\\frac", "\\text{", "\\href{a}",
    "\\begin{matrix}", "\\end{matrix}", "\\sqrt[", "]", "\\color{", "\\class{a}", "\\style{a}", "\\hspace{", "1em",
    "\\limits", "\\sum", "x", "1", " ", "\\unicode{x41}", "<", "\\over", "\\binom", "\\operatorname{", "\\verb|",
    "\\hbox{$", "\\not", "\\overline", "\\mathbf{", "\\genfrac", "\\DeclareMathOperator{\\a}{b}", "\\a", "é",
]  # fmt: skip


@settings(max_examples=2 * EXAMPLES)
@given(
    st.lists(st.sampled_from(TEX), max_size=14).map("".join),
    st.sampled_from(["${}$", "$$\n{}\n$$", "\\({}\\)", "\\[{}\\]"]),
)
def test_every_formula_makes_allowed_nodes_only(tex: str, delimiters: str) -> None:
    list(elements(nodes(delimiters.replace("{}", tex))))


# ---- bounds


@pytest.mark.parametrize(
    "markdown",
    [
        ">" * 10_000 + " deep", "- " * 10_000 + "deep", "1. " * 10_000 + "deep",
        "".join("  " * n + "- a\n" for n in range(300)) + "deep",
        "*a **b " * 2_000 + "deep" + " c** d*" * 2_000, "[" * 2_000 + "deep" + "](http://a.b)" * 2_000,
        "![" * 2_000 + "deep" + "](http://a.b)" * 2_000, "> - " * 2_000 + "deep", "~~a *b " * 2_000 + "deep",
        "$" + "{" * 500 + "deep" + "}" * 500 + "$",
        "> " * 40 + "$$\n" + "> " * 40 + r"\sqrt{\frac{deep}{b}}" + "\n" + "> " * 40 + "$$",
    ],
)  # fmt: skip
def test_deep_nesting_is_limited_and_keeps_the_text(markdown: str) -> None:
    tree = nodes(markdown)
    list(elements(tree))
    assert "deep" in "".join(map(text, tree))


def test_table_of_short_rows_is_bounded_by_its_source() -> None:
    bomb = "|".join("a" * 256) + "\n" + "|".join("-" * 256) + "\n" + "|\n" * 300
    assert len(find(bomb * 3, "td")) < len(bomb * 3)
    rows = "|a|b|c|d|e|f|\n|-|-|-|-|-|-|\n" + "|one|\n|1|2|3|4|5|6|\n" * 20
    assert len(find(rows, "tr")) == 41


def seconds(markdown: str) -> float:
    gc.disable()
    start = time.process_time()
    blocks(markdown)
    spent = time.process_time() - start
    gc.enable()
    return spent


FLOODS = [
    *"[]*_`~>($|<&!:#\\-\n\t ", "**a ", "*_", "a*", "*a_ ", "~~a ", "[a](", "[](<", '[a](b "', "![", "![a](b)",
    "[[a](b)", "`a ", "``a`", "- ", "> ", "1. ", "- a\n", "- a\n\n", "> a\n", ">\n", "> - ", "a\n\n", "a\n=\n",
    "a|b\n-|-\n", "|\n", "```\n", "    a\n", "# h\n$$a\n", "$a ", "$a$", "$\\$", "\\(", "\\[", "\\[\n", "$$a ", "$$a\n",
    "$$a\n\n", "x $$\n$$ y\n", "http://", "http://a)", "http://a.b ", "<a ", "<http://a>", "&a;", "&amp;", "[a]: b\n",
    "[^1]", "[^1]: ", "[^1]: a\n", "[^a", "[a][b]", "[a`", "![a][b]", "[1]", "[1]: http://a.b\n", "<br>", "<sub>", "</sub>", "<b>*a</b>",
    "<details>\n", "</details>\n", "- <details>\n", "<details>\n- ", "<details><summary>", "<details>\n</details>\n", "<details>\n```\n",
    "<summary>\n", "> <details>\n> ", "a@", "a@b.cd ", "@", "www.", "www.a.b ", "www.a", "> [!NOTE]\n", "\u3002**", "**\u300c", "[a](b) ",
    "\\begin{align}\n", "\\begin{align}\n\n", "\\[\n\n", "- \\[\n\n  \\]\n", "- \\[\n\n  $$\n\n", "$$\n\n$$ a\n\n", "\\[a", "$`a`$",
    "\0", "\r", "\U0001f600", "[" * 9 + "](", "a|" * 40 + "\n" + "-|" * 40 + "\n" + "|\n" * 40,
]  # fmt: skip


@pytest.mark.parametrize("unit", FLOODS)
def test_time_is_linear_in_the_text(unit: str) -> None:
    text = unit * (400 // len(unit) + 1)
    while seconds(text) < 0.002 and len(text) < 400_000:
        text *= 2
    for _ in range(4):  # squared would be 16; a busy machine may disturb one try, not four
        ratio = seconds(text * 4) / seconds(text)
        if ratio < 8:
            return
    pytest.fail(f"four times the text took {ratio:.1f} times as long")


@pytest.mark.parametrize(
    ("language", "unit"),
    [("c", "\n"), ("java", "a\n"), ("c#", "a\n"), ("terraform", "a"), ("make", "1"), ("scala", "@")],
)
def test_code_that_is_slow_to_highlight_is_highlighted_in_part(language: str, unit: str) -> None:
    source = unit * (module.MAX_CODE_CHARACTERS // len(unit) - 1) + "\n"
    start = time.process_time()
    assert shown(f"~~~{language}\n{source}~~~") == source
    assert time.process_time() - start < 2


def test_start_does_not_import_parser_lexers_or_formulas() -> None:
    program = "import sys, fireside.web.markdown; print({'markdown_it', 'pygments', 'latex2mathml'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"
