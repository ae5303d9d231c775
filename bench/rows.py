"""The measurements, each a function that yields rows of the table.

Ours and the reference run in turn, and the ratio is taken for each round. The load client and a comparison with the database check in
every run what was delivered."""

import asyncio
import compileall
import importlib.metadata
import importlib.util
import json
import math
import os
import re
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

from tests.documents import making

from . import browser, library, rig
from .rig import HERE, Fireside, Http, Load, Outcome, Process

median = statistics.median
USERS = 10  # that most streams belong to: Fireside begins at most 8 answers of one user at a time


@dataclass
class Row:
    """A row of the table. `held`: whether the target is held, or None without a target."""

    what: str
    ours: str
    reference: str = ""
    ratio: str = ""
    target: str = ""
    held: bool | None = None


@dataclass(frozen=True)
class Size:
    """The sizes of the measurements."""

    rounds: int = 3
    burst: int = 100_000  # tokens of the one stream at full speed
    seconds: int = 10  # duration of parallel streams
    streams: tuple[int, int] = (100, 500)
    firsts: int = 60  # successive answers whose first token is timed
    answer: int = 100_000  # characters of the answer that is resumed
    small: int = 1_000  # conversations
    large: int = 100_000
    asked: int = 100  # repetitions of a query
    generations: int = 10_000
    imported: int = 10_000
    starts: int = 7
    rendered: tuple[int, int] = (1_000, 100_000)  # characters of the growing answer
    updates: int = 20  # of it in a measurement
    long: int = 10_000  # messages of the longest conversation
    pasted: int = 20_000  # lines
    listed: int = 2_000  # conversations in the page's list
    document: int = 100  # pages


FULL = Size()
TINY = Size(1, 500, 1, (3, 4), 3, 2_000, 20, 40, 3, 20, 20, 1, (500, 1_000), 2, 200, 1_000, 70, 3)


@dataclass
class Bench:
    size: Size
    folder: Path
    programs: dict[str, Path]
    upstream: Process

    def bare(self) -> Process:
        return rig.bare(self.upstream.url)

    def fireside(self, *command: object) -> Fireside:
        return Fireside(self.folder / f"data-{time.monotonic_ns()}", self.upstream.url, *command).sign_in()

    def run(self, load: Load) -> Outcome:
        return load.run(self.programs)

    def stream(self, fireside: Fireside, streams: int, tokens: int, rate: float = 0) -> Outcome:
        """Stream answers in new conversations, and check what was stored."""
        return self.stream_in(fireside, [fireside.conversation() for _ in range(streams)], tokens, rate)[0]

    def stream_in(
        self, fireside: Fireside, conversations: list[int], tokens: int, rate: float
    ) -> tuple[Outcome, float]:
        """Stream answers in these conversations, and check what was stored. Return also the CPU seconds."""
        before = fireside.cpu()
        outcome = self.run(rig.fireside_load(fireside, conversations, tokens, rate))
        spent = fireside.cpu() - before
        rig.check_stored(fireside, conversations, outcome)
        return outcome, spent

    def first_token(self, load: Load) -> float:
        """Return the median seconds to the first token of these requests."""
        return float(median(request["first"] - request["sent"] for request in self.run(load).streams))

    def cpu_of_token(self, process: Process, load: Load) -> float:
        """Return the microseconds of CPU that the process needs for a token."""
        before = process.cpu()
        outcome = self.run(load)
        return (process.cpu() - before) / outcome.tokens * 1e6

    def turns(self, ours: Callable[[], float], reference: Callable[[], float], times: int = 1) -> "Pair":
        """Measure both in turn, alternating their order, in `times` as many rounds as usual."""
        found: tuple[list[float], list[float]] = [], []
        for round in range(self.size.rounds * times):
            for which in (0, 1) if round % 2 else (1, 0):
                found[which].append((ours, reference)[which]())
        return Pair(*found)


@dataclass
class Pair:
    ours: list[float]
    reference: list[float]

    @property
    def ratio(self) -> float:
        return median(a / b for a, b in zip(self.ours, self.reference, strict=True))

    def row(
        self, what: str, show: str, ratio: float, limit: float = math.inf, unit: str = "s", least: bool = False
    ) -> Row:
        """Return a row with the medians. Targets: a `ratio` at most or at least, and a `limit` of ours, in `unit`: s or ms."""
        factor = 1000 if unit == "ms" else 1
        ours = median(self.ours) * factor
        ratios = sorted(a / b for a, b in zip(self.ours, self.reference, strict=True))
        spread = f"{self.ratio:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        target = f"{'>=' if least else '<='} {ratio:g} x" + (f", <= {limit:g} {unit}" if limit < math.inf else "")
        held = (self.ratio >= ratio if least else self.ratio <= ratio) and ours <= limit
        return Row(what, show.format(ours), show.format(median(self.reference) * factor), spread, target, held)


def at_most(
    what: str, value: float, limit: float, unit: str = "", shown: str = "{:.1f}", reference: str = "", ratio: str = ""
) -> Row:
    return Row(what, shown.format(value), reference, ratio, f"<= {limit:g}{unit}", value <= limit)


def p99(values: list[float]) -> float:
    return sorted(values)[math.ceil(len(values) * 0.99) - 1]


def rate(outcome: Outcome) -> float:
    return outcome.tokens / (outcome.ended - outcome.began)


# ---------------------------------------------------------------------------------------------------- the relay


def the_load(bench: Bench) -> Iterator[Row]:
    """Measure the model server and the load client without anything in between."""
    port, size = bench.upstream.port, bench.size
    rates = [rate(bench.run(rig.direct_load(port, 1, 10 * size.burst))) for _ in range(size.rounds)]
    yield Row("load generator alone: one stream, tokens/s", f"{median(rates):,.0f}")
    for streams in size.streams:
        outcome = bench.run(rig.direct_load(port, streams, 3 * 50, 50))
        figures = f"{100 * outcome.on_time / outcome.paced:.1f} % on time, p99 {outcome.late_p99 / 1000:.1f} ms late"
        yield Row(f"load generator alone: {streams} x 50 tokens/s", figures)


def relay(bench: Bench) -> Iterator[Row]:
    size = bench.size
    with bench.bare() as bare, bench.fireside() as fireside:
        for _ in range(3):  # to warm up
            bench.run(rig.direct_load(bare.port, 10, 100))
            bench.stream(fireside, 10, 100)
        pair = bench.turns(
            lambda: rate(bench.stream(fireside, 1, size.burst)),
            lambda: rate(bench.run(rig.direct_load(bare.port, 1, size.burst))),
            2,
        )
        yield pair.row("one stream at full speed, tokens/s", "{:,.0f}", 1.5, least=True)
        yield from _first_token(bench, fireside, bare)
        yield from _many(bench, fireside, bare)
        yield from _second_reader(bench, fireside)
    yield _saves(bench)


def _first_token(bench: Bench, fireside: Fireside, bare: Process) -> Iterator[Row]:
    count = bench.size.firsts

    def direct(port: int) -> float:
        return bench.first_token(rig.direct_load(port, 1, 5, times=count))

    alone = direct(bench.upstream.port)
    pair = bench.turns(
        lambda: bench.first_token(rig.successive_load(fireside, count, 5)) - alone, lambda: direct(bare.port) - alone, 3
    )
    yield pair.row("first token, added to the model server's, p50, ms", "{:.2f}", 1.5, 2, "ms")


def _many(bench: Bench, fireside: Fireside, bare: Process) -> Iterator[Row]:
    few, most = bench.size.streams
    tokens = bench.size.seconds * 50
    outcomes: list[Outcome] = []
    of_bare: list[Outcome] = []

    def ours() -> float:
        outcome, spent = bench.stream_in(fireside, [fireside.conversation() for _ in range(few)], tokens, 50)
        outcomes.append(outcome)
        return spent / outcome.tokens * 1e6

    def reference() -> float:
        before = bare.cpu()
        outcome = bench.run(rig.direct_load(bare.port, few, tokens, 50))
        of_bare.append(outcome)
        return (bare.cpu() - before) / outcome.tokens * 1e6

    pair = bench.turns(ours, reference)
    yield pair.row(f"{few} x 50 tokens/s: CPU a token, us", "{:.1f}", 0.6)
    on_time = median(outcome.on_time / outcome.paced for outcome in outcomes)
    late = median(outcome.late_p99 for outcome in outcomes) / 1000
    late_of_bare = median(outcome.late_p99 for outcome in of_bare) / 1000
    on_time_of_bare = median(outcome.on_time / outcome.paced for outcome in of_bare)
    yield Row(
        f"{few} x 50 tokens/s: tokens on time (100 ms), p99 late",
        f"{100 * on_time:.2f} %, {late:.1f} ms",
        f"{100 * on_time_of_bare:.2f} %, {late_of_bare:.1f} ms",
        target=">= 99 %, p99 <= bare",
        held=on_time >= 0.99 and late <= late_of_bare,
    )
    users = fireside.users(USERS)

    def delivered() -> float:
        conversations = [fireside.conversation(owner=users[number % USERS]) for number in range(most)]
        return rate(bench.stream_in(fireside, conversations, tokens // 2, 50)[0])

    pair = bench.turns(delivered, lambda: rate(bench.run(rig.direct_load(bare.port, most, tokens // 2, 50))))
    yield pair.row(f"{most} x 50 tokens/s: delivered a second", "{:,.0f}", 3.5, least=True)


def _second_reader(bench: Bench, fireside: Fireside) -> Iterator[Row]:
    few, size = bench.size.streams[0], bench.size

    def spent(readers: int, streams: int, tokens: int, rate: float) -> float:
        conversations = [fireside.conversation() for _ in range(streams)] * readers
        return bench.stream_in(fireside, conversations, tokens, rate)[1]

    def row(shape: str, streams: int, tokens: int, rate: float, times: int) -> Row:
        pair = bench.turns(lambda: spent(2, streams, tokens, rate), lambda: spent(1, streams, tokens, rate), times)
        what = f"a second reader, {shape}: CPU of both against that of one, s"
        return pair.row(what, "{:.2f}", 1.15)

    yield row("full speed", 1, 2 * size.burst, 0, 3)
    yield row(f"{few} x 50 tokens/s", few, size.seconds * 25, 50, 1)


def _saves(bench: Bench) -> Row:
    streams, tokens = bench.size.streams[0], bench.size.seconds * 50
    shares = []
    for _ in range(bench.size.rounds):
        with bench.fireside(sys.executable, HERE / "stopwatch.py") as fireside:
            conversations = [fireside.conversation() for _ in range(streams)]
            _, spent = bench.stream_in(fireside, conversations, tokens, 50)
            shares.append(float(fireside.stop().split()[-1]) / spent)
    return at_most(f"saves while {streams} stream, of all CPU", median(shares) * 100, 2, " %", "{:.1f} %")


# ---------------------------------------------------------------------------------------------------- other programs

HISTORY = tuple(
    {"role": ("user", "assistant")[number % 2], "content": f"{number} {'word ' * 80}"} for number in range(200)
)


class _Program:
    """A program that uses /v1 with a token."""

    def __init__(self, fireside: Fireside, record: bool = True) -> None:
        token = fireside.http.post("/tokens", {"name": "bench", "record": record})["token"]
        self.http = Http(fireside.port)
        self.http.headers = {"Authorization": f"Bearer {token}"}
        self.asked = 0

    def request(self, tokens: int, rate: float = 0, history: tuple[dict[str, str], ...] = ()) -> bytes:
        """Return a request with a question of its own."""
        self.asked += 1
        question = {"role": "user", "content": f"Count, for the time {self.asked}."}
        return rig.openai_request(self.http, "lmstudio/", [*history, question], tokens, rate)


def programs(bench: Bench) -> Iterator[Row]:
    few, tokens, count = bench.size.streams[0], bench.size.seconds * 50, bench.size.firsts
    with bench.bare() as bare, bench.fireside() as fireside:
        program = _Program(fireside)

        def first(which: _Program, history: tuple[dict[str, str], ...] = ()) -> float:
            load = Load(fireside.port).connection()
            for _ in range(count):
                load.request("O", which.request(5, history=history), 5)
            return bench.first_token(load)

        def direct(port: int) -> float:
            return bench.first_token(rig.direct_load(port, 1, 5, times=count))

        alone = direct(bench.upstream.port)
        pair = bench.turns(lambda: first(program) - alone, lambda: direct(bare.port) - alone, 3)
        yield pair.row("/v1: first token, added to the model server's, p50, ms", "{:.2f}", 2, unit="ms")

        def spent() -> float:
            load = Load(fireside.port)
            for _ in range(few):
                load.connection().request("O", program.request(tokens, 50), tokens, 50)
            return bench.cpu_of_token(fireside, load)

        pair = bench.turns(spent, lambda: bench.cpu_of_token(bare, rig.direct_load(bare.port, few, tokens, 50)))
        yield pair.row(f"/v1: {few} x 50 tokens/s: CPU a token, us", "{:.1f}", 0.7)

        unrecorded = _Program(fireside, record=False)

        first(program, HISTORY)
        pair = bench.turns(lambda: first(program, HISTORY), lambda: first(unrecorded, HISTORY))
        added = median(a - b for a, b in zip(pair.ours, pair.reference, strict=True)) * 1000
        yield at_most("/v1: first token, added by recording the 201st message, p50, ms", added, 5, " ms", "{:.2f}")


# ---------------------------------------------------------------------------------------------------- requests


def _asked(bench: Bench, http: Http, paths: list[str]) -> list[float]:
    return [http.seconds(paths[number % len(paths)]) for number in range(max(bench.size.asked, len(paths)))]


def resume(bench: Bench) -> Iterator[Row]:
    tokens = bench.size.answer // 7
    with bench.fireside() as fireside:
        conversation = fireside.conversation()
        request = rig.stream_request(fireside, conversation, tokens, 2_000)
        bench.run(Load(fireside.port).connection().request("F", request, tokens, 2_000))
        answer = fireside.http.get(f"/conversations/{conversation}/messages")[-1]
        path = f"/generations/{answer['generation_id']}/stream"
        replayed = fireside.http.ask("GET", path).body
        assert replayed.count(b"event: done") == 1
        events = replayed.count(b"event: delta")
        times = _asked(bench, fireside.http, [path])
    what = f"resume of an answer of {bench.size.answer:,} characters in {events:,} events, p50, p99, ms"
    yield at_most(what, median(times) * 1000, 20, " ms", f"{{:.1f}}, {p99(times) * 1000:.1f}")


def databases(bench: Bench) -> Iterator[Row]:
    """Measure lists, filters, search and pages of a large database, beside a small one and a request to the bare proxy."""
    size, folders = bench.size, []
    for conversations in (size.small, size.large):
        folder = bench.folder / f"library-{conversations}"
        with Fireside(folder, bench.upstream.url).sign_in():
            pass
        library.build(folder / "fireside.db", conversations, size.long)
        folders.append(folder)
    small, large = (Fireside(folder, bench.upstream.url).sign_in() for folder in folders)
    with bench.bare() as bare, small, large:
        http = Http(bare.port)
        http.seconds("/health")
        request = p99(_asked(bench, http, ["/health"])) * 1000
        list_50 = ["/conversations?limit=50"] * (5 * size.asked)  # of 100, the p99 would be the second slowest
        pair = bench.turns(
            lambda: p99(_asked(bench, large.http, list_50)), lambda: p99(_asked(bench, small.http, list_50))
        )
        what = f"50 newest of {size.large:,} conversations against {size.small:,}, p99, ms"
        yield pair.row(what, "{:.2f}", 1.3, 5, "ms")
        for what, paths, target in _questions(size):
            times = [_asked(bench, large.http, paths) for _ in range(size.rounds)]
            worst = median(p99(values) for values in times) * 1000
            middle = median(median(values) for values in times) * 1000
            reference, ratio = f"{request:.2f} (a request to it)", f"{worst / request:.1f}"
            yield at_most(f"{what}, p50, p99, ms", worst, target, " ms", f"{middle:.1f}, {{:.1f}}", reference, ratio)
    gigabytes = (folders[1] / "fireside.db").stat().st_size / 1e9
    yield _start_pair(bench, folders[1]).row(f"start with a database of {gigabytes:.1f} GB, s", "{:.2f}", 1.5, 0.7)
    shutil.rmtree(folders[1])


def _questions(size: Size) -> Iterator[tuple[str, list[str], float]]:
    writer = library.Writer(size.large)
    common, middling, rare = writer.words[:10], writer.words[200:220], writer.words[-20:]
    titles = [word[:4] for word in (*common, *middling, *rare)]
    yield "title filter", [f"/conversations?limit=50&q={word}" for word in (*titles, "a", "zz", "zzzzz")], 50
    kinds = {
        "rare words": [library.RARE, *rare],
        "common words": common,
        "absent words": ["zzzzzz", "xylophonic"],
        "two words": [f"{a}+{b}" for a in (common[0], middling[0], rare[0]) for b in (common[3], middling[7], rare[5])],
        "Japanese": [word[:2] for word in library.JAPANESE] + list(library.JAPANESE),
    }
    messages = f"{(size.large * library.MESSAGES):,} messages"
    for kind, words in kinds.items():
        yield f"search of {messages} for {kind}", [_search(word) for word in words], 50
    phrases = [f"%22{a}+{b}%22" for a, b in zip(common[:5], common[5:], strict=True)]
    phrases += ["%22of+the+and%22", "%22the+the+the+of%22"]
    yield f"search of {messages} for phrases of common words", [_search(phrase) for phrase in phrases], 150
    path, places = "/conversations/1/messages?limit=100", (size.long - 1, size.long // 2, size.long // 5)
    pages = [path, *(f"{path}&before={place}" for place in places)]
    yield f"page of 100 of {size.long:,} messages", pages, 15


def _search(words: str) -> str:
    return "/search?q=" + "".join(
        letter if letter.isascii() else "".join(f"%{byte:02X}" for byte in letter.encode()) for letter in words
    )


# ---------------------------------------------------------------------------------------------------- start, memory, size


def _until_healthy(process: Process) -> float:
    """Return the seconds from the start of the process to its answer to GET /health."""
    with process:
        assert Http(process.port).ask("GET", "/health").status == 200
        return time.perf_counter() - process.started


def starts(bench: Bench) -> Iterator[Row]:
    folder = bench.folder / "started"
    with Fireside(folder, bench.upstream.url).sign_in():
        pass
    _until_healthy(bench.bare())  # the first start compiles its modules
    yield _start_pair(bench, folder).row("start: process to /health, s", "{:.2f}", 1.3, 0.4)


def _start_pair(bench: Bench, folder: Path) -> Pair:
    pairs = [
        bench.turns(lambda: _until_healthy(Fireside(folder, bench.upstream.url)), lambda: _until_healthy(bench.bare()))
        for _ in range(max(1, bench.size.starts // bench.size.rounds))
    ]
    return Pair([value for pair in pairs for value in pair.ours], [value for pair in pairs for value in pair.reference])


def asking(bench: Bench) -> Iterator[Row]:
    """Measure `fireside ask` until it prints the first word, beside a running service: its request is sent before that."""
    folder = bench.folder / "asked"
    command: list[object] = [sys.executable, "-m", "fireside", "ask", "Count.", "--data-dir", folder]
    with Fireside(folder, bench.upstream.url).sign_in():
        seconds = [
            _until_first_word([*command, "--model", f"lmstudio/{rig.script(4)}"]) for _ in range(bench.size.starts)
        ]
    yield at_most("fireside ask: start to the first word, s", median(seconds), 0.4, " s", "{:.2f}")


def _until_first_word(command: list[object]) -> float:
    started = time.perf_counter()
    with subprocess.Popen([*map(str, command)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as asked:
        assert asked.stdout is not None
        word = asked.stdout.read(1)
        seconds = time.perf_counter() - started
        asked.stdout.read()
    assert word and asked.returncode == 0, asked.returncode
    return seconds


def memory(bench: Bench) -> Iterator[Row]:
    size, streams = bench.size, bench.size.streams[0]
    with bench.bare() as bare, bench.fireside() as fireside:
        idle = fireside.memory(), bare.memory()
        yield at_most("memory idle, MB", idle[0], 45, "", "{:.0f}", f"{idle[1]:.0f}")
        conversations = [fireside.conversation() for _ in range(streams)]
        peak = _peak(bench, fireside, rig.fireside_load(fireside, conversations, 150, 50))
        reference = _peak(bench, bare, rig.direct_load(bare.port, streams, 150, 50))
        yield at_most(f"memory with {streams} streams, MB", peak, 120, "", "{:.0f}", f"{reference:.0f}")
        before = fireside.memory()
        _generate(bench, fireside)
        after = fireside.memory()
        what, reference_text = f"memory after {size.generations:,} generations, MB", f"{before:.0f} (before them)"
        yield Row(what, f"{after:.0f}", reference_text, target="+ 5", held=after - before <= 5)


def _peak(bench: Bench, process: Process, load: Load) -> float:
    Path(f"/proc/{process.popen.pid}/clear_refs").write_text("5")  # resets the peak
    bench.run(load)
    return process.memory("VmHWM")


def _generate(bench: Bench, fireside: Fireside) -> None:
    """Generate short answers in many conversations with ten questions each."""
    conversations = [fireside.conversation() for _ in range(max(1, bench.size.generations // 10))]
    connections = min(20, len(conversations))
    load = Load(fireside.port)
    for number in range(connections):
        load.connection()
        for conversation in conversations[number::connections]:
            path, body = f"/conversations/{conversation}/messages", json.dumps({"content": "And now?"}).encode()
            question = fireside.http.packed("POST", path, body)
            for _ in range(10):
                load.request("F", rig.stream_request(fireside, conversation, 10), 10).request("P", question)
    bench.run(load)


def install(bench: Bench) -> Iterator[Row]:
    """Measure the packages that `pip install fireside` installs."""
    names, megabytes = _closure("fireside")
    bare, bare_megabytes = _closure("starlette", "uvicorn", "httpx")
    ours, reference, held = (
        f"{names}, {megabytes:.0f}",
        f"{bare}, {bare_megabytes:.0f}",
        names <= 30 and megabytes <= 50,
    )
    yield Row("install without extras: packages, MB", ours, reference, target="<= 30, <= 50 MB", held=held)


def _closure(*roots: str) -> tuple[int, float]:
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = list(roots)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name not in found:
            found[name] = importlib.metadata.distribution(name)
            wanted = map(Requirement, found[name].requires or [])
            waiting += [need.name for need in wanted if need.marker is None or need.marker.evaluate({"extra": ""})]
    size = 0
    for name, distribution in found.items():
        if name == "fireside":  # an editable install: count the files of a wheel
            files = [file for folder in _package_folders() for file in folder.iterdir() if file.suffix in SHIPPED]
        else:
            files = [Path(str(file.locate())) for file in distribution.files or []]
        files += [_compiled(file) for file in files if file.suffix == ".py"]
        size += sum(file.stat().st_size for file in {*files} if file.is_file())
    return len(found), size / 1e6


def _package_folders() -> list[Path]:
    settings = tomllib.loads((HERE.parent / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    return [HERE.parent.joinpath(*package.split(".")[1:]) for package in settings["packages"]]


def _compiled(file: Path) -> Path:
    """Return the compiled file, which an installation makes."""
    compileall.compile_file(file, quiet=2)
    return Path(importlib.util.cache_from_source(str(file)))


def page(bench: Bench) -> Iterator[Row]:
    """Measure everything that a browser fetches at the first visit of a user who is signed in, with response headers."""
    with browser.opened() as opened:
        opened.wait_for_load_state("networkidle")
        sizes = [int(size) for size in opened.evaluate(browser.FETCHED)]
    yield at_most(
        f"page: {len(sizes)} responses of the first visit, kB over the wire", sum(sizes) / 1000, 120, "", "{:.0f}"
    )


def rendering(bench: Bench) -> Iterator[Row]:
    """Measure an update of a streaming answer that is short, and one that is long."""
    (begun, far), times = bench.size.rendered, bench.size.updates
    with browser.opened() as opened:
        browser.update(opened, begun, times)  # warms up
        pair = bench.turns(lambda: browser.update(opened, far, times), lambda: browser.update(opened, begun, times))
    what = f"an update of an answer in the page, at {far:,} characters against {begun:,}, ms"
    yield pair.row(what, "{:.1f}", 1.5, unit="ms")


def _exported(number: int, writer: library.Writer) -> dict[str, object]:
    """Return a conversation of six messages in the format of ChatGPT."""
    start = 1_700_000_000 + number * 60
    nodes: dict[str, object] = {"root": {"id": "root", "message": None, "parent": None, "children": ["0"]}}
    for place in range(6):
        message = {
            "id": f"{number}-{place}",
            "author": {"role": "assistant" if place % 2 else "user"},
            "create_time": start + place,
            "content": {"content_type": "text", "parts": [writer.text()]},
            "status": "finished_successfully",
            "metadata": {},
        }
        parent, children = str(place - 1) if place else "root", [str(place + 1)] if place < 5 else []
        nodes[str(place)] = {"id": str(place), "parent": parent, "children": children, "message": message}
    times = {"create_time": start, "update_time": start + 5}
    return {"id": f"{number}", "title": writer.title(), **times, "mapping": nodes, "current_node": "5"}


def deletion(bench: Bench) -> Iterator[Row]:
    """Measure the deletion of a long paste in the composer."""
    with browser.opened() as opened:
        seconds = median(browser.delete_paste(opened, bench.size.pasted) for _ in range(bench.size.rounds))
    yield at_most(f"deleting {bench.size.pasted:,} pasted lines in the page", seconds * 1000, 500, " ms", "{:.0f}")


def listing(bench: Bench) -> Iterator[Row]:
    """Measure what can be done in a long list of conversations."""
    count = bench.size.listed
    with browser.opened(count) as opened:
        times = browser.list_actions(opened, count)
    slowest = max(times, key=times.__getitem__)
    what = f"slowest of {len(times)} actions in the page's list of {count:,} conversations ({slowest})"
    yield at_most(what, times[slowest], 100, " ms", "{:.0f}")


def documents(bench: Bench) -> Iterator[Row]:
    """Measure the reading of a PDF in a new child process, and the delays of streams while PDFs are read one after the other."""
    writer, size = library.Writer(1), bench.size
    lines = [" ".join(re.findall(r"\w+", writer.text()))[:80] for _ in range(size.document * 45)]
    data = making.pdf(*("\n".join(lines[page * 45 :][:45]) for page in range(size.document)))

    async def read() -> float:
        began = time.perf_counter()
        async with making.reading() as reader:
            assert len((await reader.read(data)).pages) == size.document
        return time.perf_counter() - began

    seconds = median(asyncio.run(read()) for _ in range(size.rounds))
    yield at_most(f"a PDF of {size.document} pages to text, s", seconds, 1.5, "", "{:.2f}")
    with bench.fireside() as fireside, ThreadPoolExecutor(1) as pool:
        alone = bench.stream(fireside, 20, 50 * size.seconds, 50)
        running = pool.submit(bench.stream, fireside, 20, 50 * size.seconds, 50)
        while not running.done():
            asyncio.run(read())
        late, before = running.result().late_p99 / 1000, alone.late_p99 / 1000
    yield at_most("20 streams while PDFs are read: p99 late, ms", late, 25, "", "{:.1f}", f"{before:.1f} (without)")


def imports(bench: Bench) -> Iterator[Row]:
    writer, count = library.Writer(1), bench.size.imported
    conversations = [_exported(number, writer) for number in range(count)]
    body = json.dumps(conversations).encode()
    speeds = []
    for _ in range(bench.size.rounds):
        with bench.fireside() as fireside:
            answer = fireside.http.ask("POST", "/import", body)
            report = answer.json()
            assert (report["conversations"], report["messages"], report["skipped"]) == (count, 6 * count, []), report
            speeds.append(count / answer.seconds)
    what, speed = f"import of {count:,} conversations of 6 messages, a second", median(speeds)
    yield Row(what, f"{speed:,.0f}", target=">= 1,000", held=speed >= 1000)


SHIPPED = {".py", ".sql", ".txt", ".md", ".js", ".css", ".html", ".svg", ".webmanifest"}
Measurement = Callable[[Bench], Iterator[Row]]
ROWS: tuple[Measurement, ...] = (
    the_load,
    relay,
    programs,
    resume,
    databases,
    memory,
    starts,
    asking,
    install,
    page,
    rendering,
    deletion,
    listing,
    imports,
    documents,
)


def measure(size: Size, measurements: Sequence[Measurement]) -> Iterator[Row]:
    """Yield the rows of these measurements."""
    with tempfile.TemporaryDirectory(prefix="fireside-bench-") as name:
        folder = Path(name)
        programs = rig.compiled(folder)
        os.environ["PYTHONDONTWRITEBYTECODE"] = ""  # servers start from compiled files, like installed ones
        with rig.upstream(programs) as upstream:
            bench = Bench(size, folder, programs, upstream)
            for measurement in measurements:
                yield from measurement(bench)


def versions() -> str:
    packages = ("starlette", "uvicorn", "httptools", "httpx", "aiosqlite", "msgspec")
    with closing(sqlite3.connect(":memory:")) as connection:
        engine = connection.execute("SELECT sqlite_version()").fetchone()[0]
    python = ".".join(map(str, sys.version_info[:3]))
    libraries = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    return ", ".join([f"Python {python}", f"SQLite {engine}", *libraries])
