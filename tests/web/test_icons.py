"""The icons of the installed page: what the manifest and the page name is drawn, in the size that they name."""

import json
import re
import struct
import zlib
from pathlib import Path

import fireside
import pytest
from fireside.web import icons

from ..live import Running

STATIC = Path(fireside.__file__).parent / "static"
MANIFEST = json.loads((STATIC / "app.webmanifest").read_text("utf-8"))
WHITE, CLEAR = (255, 255, 255, 255), (*icons.EMBER, 0)
EMBER = (*icons.EMBER, 255)


def pixels(png: bytes) -> list[list[tuple[int, ...]]]:
    """Return the rows of a PNG with a palette as (red, green, blue, alpha). Checks the checksums."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, at = {}, 8
    while at < len(png):
        length, kind = struct.unpack(">I4s", png[at : at + 8])
        data = png[at + 8 : at + 8 + length]
        assert zlib.crc32(kind + data) == int.from_bytes(png[at + 8 + length : at + 12 + length], "big")
        chunks[kind], at = data, at + 12 + length
    assert list(chunks) == [b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"]
    width, height, depth, colour, *rest = struct.unpack(">2I5B", chunks[b"IHDR"])
    assert (depth, colour, rest) == (8, 3, [0, 0, 0])
    colours = [(*chunks[b"PLTE"][3 * at : 3 * at + 3], chunks[b"tRNS"][at]) for at in range(256)]
    raw = zlib.decompress(chunks[b"IDAT"])
    assert len(raw) == height * (width + 1) and not any(raw[:: width + 1])
    return [[colours[value] for value in raw[start + 1 : start + 1 + width]] for start in range(0, len(raw), width + 1)]


@pytest.mark.parametrize("name", icons.FILES)
def test_icon_shows_the_flame_with_its_hole(name: str) -> None:
    size, is_round = icons.FILES[name]
    rows = pixels(icons.draw(name))
    assert len(rows) == len(rows[0]) == size

    def at(x: float, y: float) -> tuple[int, ...]:
        return rows[int(y / icons.GRID * size)][int(x / icons.GRID * size)]

    assert at(11, 21) == at(21, 18) == at(16.5, 10) == WHITE
    assert at(16, 23) == at(5, 16) == at(27, 27) == EMBER
    corners = {rows[y][x] for x in (0, -1) for y in (0, -1)}
    assert corners == ({CLEAR} if is_round else {EMBER})
    if not is_round:  # a system may cut off all outside of a circle of four fifths
        centre = (size - 1) / 2
        flame = [(x, y) for y, row in enumerate(rows) for x, colour in enumerate(row) if colour != EMBER]
        assert max((x - centre) ** 2 + (y - centre) ** 2 for x, y in flame) < (0.4 * size) ** 2


def test_manifest_names_an_icon_of_each_kind_in_its_size() -> None:
    named = {one["src"].removeprefix("/static/"): one for one in MANIFEST["icons"]}
    for name, one in named.items():
        if name in icons.FILES:
            assert one["sizes"] == "x".join(2 * [str(icons.FILES[name][0])]) and one["type"] == "image/png"
        else:
            assert (STATIC / name).exists()
    touch = re.findall(r'rel="apple-touch-icon" href="/static/([^"]+)"', (STATIC / "index.html").read_text("utf-8"))
    assert {*named, *touch} >= icons.FILES.keys() and icons.FILES[touch[0]] == (180, False)
    assert {"192x192", "512x512"} <= {one["sizes"] for one in named.values() if "purpose" not in one}
    assert [one["src"] for one in named.values() if one.get("purpose") == "maskable"] == ["/static/icon-square-512.png"]


async def test_icons_are_served_as_png(running: Running) -> None:
    for name in icons.FILES:
        answer = await running.anybody().get(f"/static/{name}")
        assert answer.headers["content-type"] == "image/png" and answer.content == icons.draw(name)
    again = await running.anybody().get("/static/icon-192.png", headers={"If-None-Match": answer.headers["etag"]})
    assert again.status_code == 200, "another icon"
    assert (await running.anybody().get("/static/icon-193.png")).status_code == 404
