"""The page in a real Firefox."""

from pathlib import Path

import pytest

from ..browser import NO_ENGINE, Fireside
from ..firefox import firefox, missing, name_server, until
from ..page.steps import new
from ..pages import web_server
from ..upstream import Upstream, answer

pytestmark = [pytest.mark.long, pytest.mark.skipif(bool(missing()), reason=missing())]

# Usual links, added to a page after it has loaded, as Fireside's page adds them. /hover has the header, / has not.
UNPROTECTED = """<!doctype html><title>Not Fireside</title><body><script>
addEventListener("load", () => {
  for (const name of ["markdown", "bare", "image"]) {
    const link = document.createElement("a");
    link.href = `http://${name}${location.pathname.replace("/", "-")}.unprotected.example/`;
    link.target = "_blank";
    link.rel = "noopener noreferrer";
    link.textContent = name;
    document.body.append(link);
  }
});
</script>"""
ANSWER = """A [link](http://markdown.fireside.example/secret), http://bare.fireside.example/secret,
![image](http://image.fireside.example/secret.png) and [another](https://secure.fireside.example/)."""


def test_links_of_an_answer_are_resolved_only_when_they_are_pressed(tmp_path: Path) -> None:
    """Firefox resolves the hosts of all links of a page on http, and connects to that of a link under the pointer."""
    with (
        Upstream() as upstream,
        Fireside(tmp_path / "data", NO_ENGINE, lmstudio_url=upstream.url) as fireside,
        name_server() as names,
        web_server(UNPROTECTED.encode(), hover={"X-DNS-Prefetch-Control": "off"}) as other,
        firefox(tmp_path) as browser,
    ):
        ann = fireside.first()
        upstream.enqueue(answer(ANSWER))
        conversation_id = new(ann, "Where?", provider_id="lmstudio", model="llama-3.2-3b-instruct")
        page = f"{fireside.url}/#/c/{conversation_id}"
        browser.sign_in(fireside.url, ann)
        browser.open(page)
        browser.wait_for("document.querySelectorAll('.markdown a[title*=fireside]').length === 4")
        browser.hover(".markdown a")
        browser.evaluate("document.querySelector('.markdown a').focus()")
        # What Firefox does with other pages after that, it would have done with ours before.
        browser.open(f"{other.url}/")
        until(lambda: {f"{name}-.unprotected.example" for name in ("markdown", "bare", "image")} <= names)
        browser.open(f"{other.url}/hover")
        browser.hover("a")
        until(lambda: "markdown-hover.unprotected.example" in names)
        assert "bare-hover.unprotected.example" not in names
        assert not [name for name in names if name.endswith(".fireside.example")]
        browser.open(page)
        browser.wait_for("document.querySelector('.markdown a')")
        browser.click(".markdown a")
        until(lambda: "markdown.fireside.example" in names)
