"""Markdown as models write it: each construct beyond CommonMark, also while it streams, and with the texts that only look like it."""

# ruff: noqa: RUF001  the full-width characters are meant

import html
import json
from typing import Any

import pytest
from fireside.web import markdown as module

from .test_markdown import blocks, find, markup, nodes, shown, streamed

FOLD = "<details><summary>{}</summary>{}</details>"
NOTE = '<div class="footnote" data-label="{0}"><a>{1}</a>{2}</div>'


def reference(before: str, text: str, after: str, label: str) -> str:
    return f'<span data-reference="{label}"><span>{before}</span><a>{text}</a><span>{after}</span></span>'


EXAMPLES = {
    # HTML
    "|a|\n|-|\n|b<br>c<BR/>d|": (
        "<table><thead><tr><th>a</th></tr></thead><tbody><tr><td>b<br></br>c<br></br>d</td></tr></tbody></table>"
    ),
    "H<sub>2</sub>O x<sup>*n*</sup> <kbd>Ctrl</kbd>+<kbd>C</kbd> <mark>a</mark>": (
        "<p>H<sub>2</sub>O x<sup><em>n</em></sup> <kbd>Ctrl</kbd>+<kbd>C</kbd> <mark>a</mark></p>"
    ),
    "<b>a</b> <i>b</i> <STRONG>c</STRONG> <del>d</del>": (
        "<p><strong>a</strong> <em>b</em> <strong>c</strong> <s>d</s></p>"
    ),
    "<sub>a *b</sub> c* <sup>": "<p>&lt;sub&gt;a <em>b&lt;/sub&gt; c</em> &lt;sup&gt;</p>",
    "<sub onclick=x>a</sub> `<kbd>`": "<p>&lt;sub onclick=x&gt;a&lt;/sub&gt; <code>&lt;kbd&gt;</code></p>",
    "<details>\n<summary>A <b>b</b></summary>\n\n- c\n\n```\n</details>\n```\n</details>\nd": (
        FOLD.format("A <strong>b</strong>", "<ul><li>c</li></ul><pre><code>&lt;/details&gt;\n</code></pre>") + "<p>d</p>"
    ),
    "a\n<details open><summary>b</summary>c</details>": (
        '<p>a</p><details open=""><summary>b</summary><p>c</p></details>'
    ),
    "<details>\n<summary>\n<h3>a\nb</h3>\n</summary>\nc\n</details> d": (
        FOLD.format("a\nb", "<p>c</p>") + "<p>&lt;/details&gt; d</p>"
    ),
    "<details>\n\na\n<details>\n\nb\n</details>\nc\n</details>": (
        FOLD.format("Details", f"<p>a</p>{FOLD.format('Details', '<p>b</p>')}<p>c</p>")
    ),
    "- a\n  <details><summary>b</summary>\n  c\n\n  d</details>\n- e\n\n> <details>\n> f\n\ng": (
        f"<ul><li>a{FOLD.format('b', '<p>c</p><p>d</p>')}</li><li>e</li></ul>"
        f"<blockquote>{FOLD.format('Details', '<p>f</p>')}</blockquote><p>g</p>"
    ),
    "<details> is an element": "<p>&lt;details&gt; is an element</p>",
    "<summary>a</summary>": "<p>&lt;summary&gt;a&lt;/summary&gt;</p>",
    # emphasis beside Chinese, Japanese and Korean
    "これは**「重要」**です。**注意：**必ず": "<p>これは<strong>「重要」</strong>です。<strong>注意：</strong>必ず</p>",
    "나는 **“사과”**를 *(a)*도": "<p>나는 <strong>“사과”</strong>를 <em>(a)</em>도</p>",
    "这是~~《书》~~和***`x`***。": "<p>这是<s>《书》</s>和<em><strong><code>x</code></strong></em>。</p>",
    "中** a **文 snake_「case」_x": "<p>中** a **文 snake_「case」_x</p>",
    # footnotes
    "a[^1] b[^x-y]\n\n[^1]: *c*\nd\n\n    - e\n[^x-y]: f\n\ng": (
        f"<p>a{reference('[^', '1', ']', '^1')} b{reference('[^', 'x-y', ']', '^x-y')}</p>"
        + NOTE.format("^1", "1", "<p><em>c</em>\nd</p><ul><li>e</li></ul>")
        + NOTE.format("^x-y", "x-y", "<p>f</p>")
        + "<p>g</p>"
    ),
    "`[^1]` \\[^1] [^a b]": "<p><code>[^1]</code> [^1] [^a b]</p>",
    # references
    "[A *b*][1] [c][] [1] [c]\n\n[1]: http://d.e 'f'\n[C]: <http://g.h>": (
        f"<p>{reference('[', 'A <em>b</em>', '][1]', '1')} {reference('[', 'c', '][]', 'c')} {reference('[', '1', ']', '1')} [c]</p>"
        '<p class="definition" data-label="1" data-address="http://d.e">[1]: <a href="http://d.e">http://d.e</a> \'f\'</p>'
        '<p class="definition" data-label="c" data-address="http://g.h">[C]: <a href="http://g.h">http://g.h</a></p>'
    ),
    "[a]: javascript:alert(1)\n[b]: ./c\n[d]: http://e.f g": (
        '<p>[a]: javascript:alert(1)\n[b]: ./c\n[d]: <a href="http://e.f">http://e.f</a> g</p>'
    ),
    # alerts
    "> [!NOTE]\n> a\n\n> [!warning]\n> - b": (
        '<div class="alert note"><p>Note</p><p>a</p></div><div class="alert warning"><p>Warning</p><ul><li>b</li></ul></div>'
    ),
    "> [!OTHER]\n> a": "<blockquote><p>[!OTHER]\na</p></blockquote>",
    # addresses
    "www.a.example/b_c, first_last+x@d.example.": (
        '<p><a href="http://www.a.example/b_c">www.a.example/b_c</a>, '
        '<a href="mailto:first_last+x@d.example">first_last+x@d.example</a>.</p>'
    ),
    "git@a.example:b/c react@18.2.0 a@b xwww.a.example @app.route www.": (
        "<p>git@a.example:b/c react@18.2.0 a@b xwww.a.example @app.route www.</p>"
    ),
    "[*a*](./b/c.md) ![d](e.png) [f](#g) [h.md](h.md)": (
        "<p><span><em>a</em> (./b/c.md)</span> <span>d (e.png)</span> <span>f (#g)</span> <span>h.md</span></p>"
    ),
    # math
    r"\[1\] a\[i+1\] \[x\] b \[c\](/d) \(e": "<p>[1] a[i+1] [x] b [c](/d) (e</p>",
    "\\[Verse one\\]": "<p>[Verse one]</p>",
    "$a `b` c$ `$d$` $5 `e` $f": "<p>$a <code>b</code> c$ <code>$d$</code> $5 <code>e</code> $f</p>",
    # diagrams
    "```mermaid\ngraph TD\n```": '<pre><code data-language="mermaid">graph TD\n</code></pre>',
}  # fmt: skip


@pytest.mark.parametrize("markdown", EXAMPLES)
def test_construct_of_the_dialect_becomes_its_element(markdown: str) -> None:
    assert "".join(markup(node) for node in nodes(markdown)) == EXAMPLES[markdown]


@pytest.mark.parametrize("markdown", EXAMPLES)
def test_every_prefix_of_an_example_has_a_stable_beginning(markdown: str) -> None:
    text = f"Before\n\n{markdown}\n\nAfter\n"
    assert streamed(text) == nodes(text)


@pytest.mark.parametrize(
    "markdown",
    [
        "a\n\\begin{align}\nx &= y \\\\\n\n- z &= 1 \\label{eq:1}\n\\end{align}\nb",
        "a\n$$\nx\n\n= y\n\n\n+ z\n$$\nb",
        "- a\n\n  \\[\n  x\n\n  = y\n  \\]\n\nb",
        "a \\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix} b",
        "a \\[ E = mc^2 \\] b",
        "公式\\[x_1\\]。",
    ],
)
def test_formula_may_contain_blank_lines_and_have_no_dollars(markdown: str) -> None:
    (math,) = find(markdown, "math")
    assert math[1] == {"display": "block"}
    assert "\\" not in shown(markdown)
    assert streamed(markdown) == nodes(markdown)


def test_formula_that_never_ends_leaves_the_rest_of_an_answer_as_it_is() -> None:
    answer = "$$\nx\n\n" + "- word\n\n# head\n\n" * 400
    assert [node[0] for node in nodes(answer)[:3]] == ["p", "ul", "h1"]
    closed = [block.closed for block in blocks(answer[:3000])]
    assert not any(closed)  # a "$$" may still follow
    assert sum(block.closed for block in blocks(answer)) == len(nodes(answer)) - 1


@pytest.mark.parametrize(
    ("tex", "text"),
    [
        (r"\ce{2H2 + O2 -> 2H2O}", "2H2+O2→2H2O"),
        (r"\ce{SO4^2- <=> Fe^{3+}}", "SO42−⇌Fe3+"),
        (r"\SI{9.81}{\meter\per\second\squared}", "9.81m/s2"),
        (r"\qty{3}{\furlong} + \si{m/s}", "3furlong+m/s"),
        (r"\num{1.5e-3}", "1.5×10−3"),
        (r"x \tag{1} \label{eq:a} \nonumber", "x(1)"),
    ],
)
def test_chemistry_units_and_labels_are_readable(tex: str, text: str) -> None:
    assert shown(f"${tex}$") == text


@pytest.mark.parametrize("tag", ["sub", "sup", "kbd", "mark", "details", "summary", "div", "p", "span"])
def test_no_attribute_of_a_tag_reaches_the_page(tag: str) -> None:
    source = f'<{tag} onclick="alert(1)" style="x" id="csrf" class="login">a</{tag}>'
    assert "".join(markup(node) for node in nodes(source)) == f"<p>{html.escape(source, quote=False)}</p>"


def test_deep_folds_and_notes_keep_their_text() -> None:
    for markdown in (
        "<details>\n" * 5_000 + "deep",
        "[^1]: " * 5_000 + "deep",
        "<sub>" * 5_000 + "deep" + "</sub>" * 5_000,
    ):
        tree: list[Any] = [json.loads(node) for node in [*module.render(markdown)][1:]]
        assert "deep" in "".join(map(json.dumps, tree))
