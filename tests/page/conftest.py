"""What the tests of the page stand on: a real Chromium, the real service, and the real small model, or a scripted LM Studio
where a test must know what is answered, and when.
"""

from collections.abc import Callable, Iterator

import httpx
import pytest
from playwright.sync_api import Browser, Playwright, expect, sync_playwright

from ..browser import NO_ENGINE, Fireside, Watched, launch
from ..upstream import Upstream
from .steps import names

expect.set_options(timeout=30_000)


@pytest.fixture(scope="package")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as playwright:
        yield playwright


@pytest.fixture(scope="package")
def browser(playwright: Playwright) -> Iterator[Browser]:
    browser = launch(playwright)
    yield browser
    browser.close()


@pytest.fixture(scope="package")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fireside]:
    """A Fireside with the small model that it carries, and no LM Studio."""
    with Fireside(tmp_path_factory.mktemp("house"), lmstudio_url="http://127.0.0.1:9") as house:
        yield house


@pytest.fixture(scope="package")
def ann(house: Fireside) -> httpx.Client:
    return house.first()


@pytest.fixture(scope="package")
def lmstudio() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest.fixture(scope="package")
def studio(tmp_path_factory: pytest.TempPathFactory, lmstudio: Upstream) -> Iterator[Fireside]:
    """A Fireside whose LM Studio is the scripted one."""
    folder = tmp_path_factory.mktemp("studio")
    with Fireside(folder, NO_ENGINE, lmstudio_url=lmstudio.url, lmstudio_concurrency="16") as studio:
        yield studio


@pytest.fixture(scope="package")
def bea(studio: Fireside) -> httpx.Client:
    return studio.first("bea")


@pytest.fixture
def visitor(browser: Browser) -> Iterator[Callable[..., Watched]]:
    """`visitor(fireside, client)`: a browser of its own for whom the client has signed in. Nothing in it may go wrong."""
    visits: list[Watched] = []

    def visit(fireside: Fireside, client: httpx.Client | None = None, **options: object) -> Watched:
        visits.append(Watched(browser, fireside.url, client, **options))
        return visits[-1]

    yield visit
    for visit_ in visits:
        visit_.close()


@pytest.fixture
def at_home(house: Fireside, ann: httpx.Client, visitor: Callable[..., Watched]) -> tuple[Watched, httpx.Client]:
    """A new user of the house, and their browser."""
    client = house.join(ann, next(names))
    return visitor(house, client), client


@pytest.fixture
def at_studio(
    studio: Fireside, bea: httpx.Client, visitor: Callable[..., Watched], lmstudio: Upstream
) -> tuple[Watched, httpx.Client]:
    lmstudio.forget()
    client = studio.join(bea, next(names))
    return visitor(studio, client), client
