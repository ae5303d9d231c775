"""The page in a real Firefox."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..browser import NO_ENGINE, Fireside
from ..firefox import firefox, missing, name_server, until
from ..page.steps import new
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


@pytest.fixture
def unprotected() -> Iterator[str]:
    """The address of a server with UNPROTECTED."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            if self.path == "/hover":
                self.send_header("X-DNS-Prefetch-Control", "off")
            self.end_headers()
            self.wfile.write(UNPROTECTED.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def test_links_of_an_answer_are_resolved_only_when_they_are_pressed(tmp_path: Path, unprotected: str) -> None:
    """Firefox resolves the hosts of all links of a page on http, and connects to that of a link under the pointer."""
    with (
        Upstream() as upstream,
        Fireside(tmp_path / "data", NO_ENGINE, lmstudio_url=upstream.url) as fireside,
        name_server() as names,
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
        browser.open(unprotected)
        until(lambda: {f"{name}-.unprotected.example" for name in ("markdown", "bare", "image")} <= names)
        browser.open(f"{unprotected}hover")
        browser.hover("a")
        until(lambda: "markdown-hover.unprotected.example" in names)
        assert "bare-hover.unprotected.example" not in names
        assert not [name for name in names if name.endswith(".fireside.example")]
        browser.open(page)
        browser.wait_for("document.querySelector('.markdown a')")
        browser.click(".markdown a")
        until(lambda: "markdown.fireside.example" in names)
