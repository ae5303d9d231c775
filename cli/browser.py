"""Open the page in a browser without a secret on the browser's command line, which all users of the computer can read."""

import contextlib
import html
import subprocess
import sys
import webbrowser
from pathlib import Path

from ..config import Config
from ..db import write_private

_REDIRECT = """\
<!doctype html>
<meta charset="utf-8">
<meta http-equiv="refresh" content="0;url={link}">
<title>Fireside</title>
<p><a href="{link}">Open Fireside</a></p>
"""


def open_page(settings: Config, url: str, setup_link: str | None) -> None:
    """Open the page, unless the settings say no or there is no terminal. Wait for the browser's command, not for the browser."""
    if settings.open and sys.stdout.isatty():
        webbrowser.open(page_address(settings, url, setup_link))


def page_address(settings: Config, url: str, setup_link: str | None) -> str:
    """Return an address without a token: a private file that redirects to the setup link, or `url` if there is no setup link or
    the browser could not read that file. The page at `url` says where to find the link."""
    if setup_link is None or _default_browser_is_snap():
        return url
    try:
        write_private(settings.setup_page, _REDIRECT.format(link=html.escape(setup_link)))
    except OSError:
        return url
    return settings.setup_page.as_uri()


def _default_browser_is_snap() -> bool:
    """Snaps cannot read hidden folders such as ~/.local, where the data directory is."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["xdg-settings", "get", "default-web-browser"]
        name = subprocess.run(command, capture_output=True, text=True, timeout=5).stdout.strip()
        return Path("/var/lib/snapd/desktop/applications", name).is_file()
    return False
