"""The icons of the installed page as PNG: some systems take no SVG. They are drawn from the path in favicon.svg."""

import math
import re
import struct
import zlib
from functools import cache
from importlib import resources
from itertools import pairwise

FILES = {  # name: size in pixels, and whether the corners are round; systems that cut a shape out need the whole square
    "icon-192.png": (192, True),
    "icon-512.png": (512, True),
    "icon-square-180.png": (180, False),
    "icon-square-512.png": (512, False),
}
GRID = 32  # the width of favicon.svg
CURVE_STEPS = 16
SAMPLES = 4  # lines for a row of pixels
EMBER = (0xB8, 0x42, 0x0F)
LEVELS = (
    127  # of the coverage of a pixel: colours 0 to 127 go from ember to white, 128 to 255 from ember to transparent
)


@cache
def draw(name: str) -> bytes:
    """Return the PNG of this name. The largest takes 0.2 s."""
    size, is_round = FILES[name]
    rows = [b"\0" + _row(y, size, is_round) for y in range(size)]
    shades = [bytes(round(part + (255 - part) * level / LEVELS) for part in EMBER) for level in range(LEVELS + 1)]
    alphas = bytes([255] * (LEVELS + 1) + [round(255 - 255 * level / LEVELS) for level in range(LEVELS + 1)])
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (
            (b"IHDR", struct.pack(">2I5B", size, size, 8, 3, 0, 0, 0)),
            (b"PLTE", b"".join(shades) + bytes(EMBER) * (LEVELS + 1)),
            (b"tRNS", alphas),
            (b"IDAT", zlib.compress(b"".join(rows), 9)),
            (b"IEND", b""),
        )
    )


def _row(y: int, size: int, is_round: bool) -> bytearray:
    """Return the colour of each pixel of a row."""
    scale, covered = size / GRID, [0.0] * size
    for sample in range(SAMPLES):
        at = (y + (sample + 0.5) / SAMPLES) / scale
        edges = [edge for edge in _edges() if min(edge[1], edge[3]) <= at < max(edge[1], edge[3])]
        crossings = sorted(scale * (x0 + (at - y0) * (x1 - x0) / (y1 - y0)) for x0, y0, x1, y1 in edges)
        for left, right in zip(crossings[::2], crossings[1::2], strict=True):
            for x in range(int(left), min(size, int(right) + 1)):
                covered[x] += (min(x + 1, right) - max(x, left)) / SAMPLES
    row = bytearray(round(LEVELS * min(1, part)) for part in covered)
    radius = size // 4 if is_round else 0
    for x in range(radius):
        outside = math.hypot(radius - x - 0.5, max(0, radius - min(y, size - 1 - y) - 0.5)) - radius + 0.5
        if outside > 0:
            row[x] = row[-1 - x] = LEVELS + 1 + round(LEVELS * min(1, outside))
    return row


@cache
def _edges() -> list[tuple[float, float, float, float]]:
    """Return the lines of the flame and of the hole in it, from their cubic curves in absolute coordinates."""
    svg = resources.files("fireside").joinpath("static", "favicon.svg").read_text("utf-8")
    edges = []
    for outline in re.findall(r"M([\d. C]+)Z", svg):
        numbers = [float(number) for number in re.findall(r"[\d.]+", outline)]
        points = [complex(*numbers[at : at + 2]) for at in range(0, len(numbers), 2)]
        line = points[:1]
        for a, b, c, d in zip(points[::3], points[1::3], points[2::3], points[3::3], strict=False):
            for step in range(1, CURVE_STEPS + 1):
                t = step / CURVE_STEPS
                line.append(a * (1 - t) ** 3 + 3 * b * t * (1 - t) ** 2 + 3 * c * t**2 * (1 - t) + d * t**3)
        edges += [(p.real, p.imag, q.real, q.imag) for p, q in pairwise(line)]
    return edges
