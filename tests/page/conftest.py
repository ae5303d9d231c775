"""A real Chromium and a real service, with the small model or with a scripted LM Studio."""

import itertools
from collections.abc import Callable, Iterator

import httpx
import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from ..browser import NO_ENGINE, Fireside, SharedVisit, Visit, launch
from ..upstream import Upstream

expect.set_options(timeout=30_000)


def pytest_itemcollected(item: pytest.Item) -> None:
    """`make long` runs only the long tests of the page: -m "long or not page"."""
    item.add_marker("page")


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = launch(playwright)
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def model_server() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest.fixture
def lmstudio(model_server: Upstream) -> Upstream:
    """The scripted LM Studio, without the scripts that the tests before have left."""
    model_server.forget()
    return model_server


@pytest.fixture(scope="package")
def studio(tmp_path_factory: pytest.TempPathFactory, model_server: Upstream) -> Iterator[Fireside]:
    """A Fireside whose LM Studio is the scripted one."""
    folder = tmp_path_factory.mktemp("studio")
    with Fireside(folder, NO_ENGINE, lmstudio_url=model_server.url, lmstudio_concurrency="16") as studio:
        yield studio


@pytest.fixture(scope="package")
def admin(studio: Fireside) -> httpx.Client:
    return studio.first("admin")


@pytest.fixture
def visitor(browser: Browser) -> Iterator[Callable[..., Visit]]:
    """`visitor(fireside, client)` starts a visit, which is checked when the test ends."""
    visits: list[Visit] = []

    def visit(fireside: Fireside, client: httpx.Client | None = None, **options: object) -> Visit:
        visits.append(Visit(browser, fireside.url, client, **options))
        return visits[-1]

    yield visit
    for visit_ in visits:
        visit_.close()


names = (f"person{number}" for number in itertools.count())


@pytest.fixture
def new_visit(
    studio: Fireside, admin: httpx.Client, visitor: Callable[..., Visit], lmstudio: Upstream
) -> Callable[..., Visit]:
    """`new_visit(role)` starts a visit of a new user in a browser context of its own, answered by the scripted LM Studio."""

    def visit(role: str = "user", name: str = "", **options: object) -> Visit:
        return visitor(studio, studio.join(admin, name or next(names), role), **options)

    return visit


@pytest.fixture(scope="package")
def shared_visit(browser: Browser, studio: Fireside) -> Iterator[SharedVisit]:
    visit = SharedVisit(browser, studio.url)
    visit.forget()
    yield visit
    visit.close()


@pytest.fixture
def visit(shared_visit: SharedVisit, studio: Fireside, admin: httpx.Client, lmstudio: Upstream) -> Iterator[Visit]:
    """A visit of a new user in the browser context of the tests before, without what they left in it."""
    shared_visit.sign_in(studio.join(admin, next(names)))
    yield shared_visit
    shared_visit.forget()
    shared_visit.check()
