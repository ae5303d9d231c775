"""Firefox resolves no names for the page, by a DNS server that records the names it is asked for."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..browser import NO_ENGINE, Fireside
from ..page.steps import new
from ..pages import web_server
from ..upstream import Upstream, answer
from ..webdriver import firefox, missing_firefox, until

DNS_ADDRESS = "127.83.0.1"  # not shared, because resolv.conf cannot name another port than 53
NAME_DOES_NOT_EXIST = b"\x81\x83"


def missing() -> str:
    """Return why the test cannot run here, or an empty string."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a DNS server for one process needs Linux and root"
    if subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode:
        return "this container may not mount files (CAP_SYS_ADMIN)"
    return missing_firefox()


@contextlib.contextmanager
def name_server() -> Iterator[set[str]]:
    """Run a name server for which no name exists. Yield the names it is asked for."""
    names: set[str] = set()

    def serve() -> None:
        while message := (query := listener.recvfrom(4096))[0]:
            labels, at = [], 12  # after the header (RFC 1035, 4.1)
            while size := message[at]:
                labels.append(message[at + 1 : at + 1 + size].decode())
                at += 1 + size
            names.add(".".join(labels).lower())
            question = message[12 : at + 5]
            listener.sendto(message[:2] + NAME_DOES_NOT_EXIST + b"\0\1" + bytes(6) + question, query[1])

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind((DNS_ADDRESS, 53))
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield names
        finally:
            listener.sendto(b"", (DNS_ADDRESS, 53))  # ends the thread
            thread.join()


def resolving(folder: Path) -> list[str]:
    """Return the start of a command that resolves names at DNS_ADDRESS."""
    resolv_conf = folder / "resolv.conf"
    resolv_conf.write_text(f"nameserver {DNS_ADDRESS}\n", "utf-8")
    return ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/resolv.conf && exec "$@"', str(resolv_conf)]


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
        firefox(tmp_path, *resolving(tmp_path)) as browser,
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
        browser.expect(".markdown a")
        browser.click(".markdown a")
        until(lambda: "markdown.fireside.example" in names)
