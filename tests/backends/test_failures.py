"""What servers report as errors, and which code and message Fireside makes of it."""

import json
import time
from dataclasses import replace
from typing import Any

import pytest
from fireside.backends.failures import display_text, reported_error
from fireside.config import Provider
from fireside.errors import ProviderFailed

LMSTUDIO = Provider("lmstudio", "lmstudio", "LM Studio", source="environment")
BOX = Provider(
    "box", "openai", "The box", "http://10.0.0.5:1234/v1", api_key="sk-secret-0123456789", source="config.toml"
)


def reported(provider: Provider, payload: Any, status: int | None = None) -> ProviderFailed:
    return reported_error(provider, (payload if isinstance(payload, str) else json.dumps(payload)).encode(), status)


OLD_OVERFLOW = (
    "Trying to keep the first 5210 tokens when context the overflows. However, the model is loaded with context length "
    "of only 4096 tokens, which is not enough. Try to load the model with a larger context length, or provide a shorter "
    "input"
)
NEW_OVERFLOW = (
    "The number of tokens to keep from the initial prompt is greater than the context length (n_keep: 13055>= n_ctx: "
    "4096). Try to load the model with a larger context length, or provide a shorter input."
)
GPT_OSS_OVERFLOW = (
    "Reached context length of 32000 tokens with model (arch: gpt-oss) that does not currently support mid-generation "
    "context overflow. Try reloading with a larger context length or shortening the prompt/chat."
)


@pytest.mark.parametrize(
    ("payload", "n_ctx", "n_prompt"),
    [
        pytest.param({"error": OLD_OVERFLOW}, 4096, 5210, id="LM Studio 0.3"),
        pytest.param({"error": NEW_OVERFLOW}, 4096, 13055, id="LM Studio 0.4"),
        pytest.param({"error": {"message": GPT_OSS_OVERFLOW}}, 32000, None, id="LM Studio, gpt-oss"),
        pytest.param(
            {"error": {"code": 400, "message": "the request exceeds the available context size, try increasing it",
                       "type": "exceed_context_size_error", "n_prompt_tokens": 9001, "n_ctx": 8192}},
            8192, 9001, id="llama.cpp",
        ),
        pytest.param(
            {"error": {"message": "request (9001 tokens) exceeds the available context size (8192 tokens), try increasing it"}},
            8192, 9001, id="llama.cpp, in words",
        ),
        pytest.param(
            {"object": "error", "type": "BadRequestError", "code": 400, "message": "This model's maximum context length is "
             "4096 tokens. However, you requested 5000 tokens (4900 in the messages, 100 in the completion)."},
            4096, 5000, id="vLLM",
        ),
        pytest.param(
            {"error": {"message": "The decoder prompt (length 5000) is longer than the maximum model length of 4096."}},
            4096, 5000, id="vLLM, newer",
        ),
        pytest.param({"error": {"message": "the input length exceeds the context length"}}, None, None, id="Ollama"),
        pytest.param(
            {"error": {"message": "Requested tokens (5000) exceed context window of 4096"}}, 4096, 5000, id="llama-cpp-python",
        ),
        pytest.param({"error": {"message": "litellm.ContextWindowExceededError: OpenAIException - Too long"}}, None, None, id="LiteLLM"),
        pytest.param({"error": {"message": "Too long.", "code": "context_length_exceeded"}}, None, None, id="OpenAI"),
    ],
)  # fmt: skip
def test_context_overflow_is_recognised_with_its_numbers(payload: Any, n_ctx: int | None, n_prompt: int | None) -> None:
    for failure in (reported(LMSTUDIO, payload, 400), reported(LMSTUDIO, payload)):
        room = f", which has room for {n_ctx} tokens" if n_ctx else ""
        taken = f" It takes {n_prompt}." if n_prompt else ""
        assert failure.code == "CONTEXT_OVERFLOW"
        assert f"context{room}.{taken} Load the model with a larger context length" in failure.message


NO_MODEL = "No models loaded. Please load a model in the developer page or use the 'lms load' command."


@pytest.mark.parametrize(
    ("status", "payload", "code"),
    [
        (404, {"error": {"message": NO_MODEL, "type": "invalid_request_error", "param": "model", "code": None}},
         "MODEL_NOT_LOADED"),
        (400, {"error": {"message": NO_MODEL}}, "MODEL_NOT_LOADED"),
        (404, {"error": {"message": 'Invalid model identifier "X".', "type": "invalid_request", "code": "model_not_found"}},
         "MODEL_NOT_FOUND"),
        (404, {"error": {"message": "model 'x' not found, try pulling it first", "type": "not_found_error"}},
         "MODEL_NOT_FOUND"),
        (400, {"error": {"message": "/chat/completions: Invalid model name passed in model=x. Call `/v1/models` to view "
                                    "available models for your key.", "type": "invalid_request_error", "code": "400"}},
         "MODEL_NOT_FOUND"),
        (404, {"object": "error", "message": "The model `x` does not exist.", "type": "NotFoundError", "code": 404},
         "MODEL_NOT_FOUND"),
        (404, {"error": {"message": "The model `x` does not exist.", "type": "NotFoundError", "code": 404}},
         "MODEL_NOT_FOUND"),
        (400, {"error": 'Failed to load model "X". Error: Operation canceled.'}, "MODEL_LOAD_FAILED"),
        (400, {"error": {"message": 'Failed to load model "X". Error: Model loading aborted due to insufficient system '
                                    "resources. Overloading the system will likely cause it to freeze. Try a smaller "
                                    "context length."}}, "MODEL_LOAD_FAILED"),
        (400, {"error": {"message": "Model is unloaded."}}, "MODEL_LOAD_FAILED"),
        (400, {"error": {"message": "The model has crashed without additional information. (Exit code: 6)"}},
         "MODEL_LOAD_FAILED"),
        (400, {"error": {"message": "Channel Error"}}, "MODEL_LOAD_FAILED"),
        (500, {"error": {"message": "Model does not support images. Please use a model that does."}}, "VISION_UNSUPPORTED"),
        (500, {"error": {"message": "image input is not supported - hint: you may need to provide the mmproj"}},
         "VISION_UNSUPPORTED"),
        (503, {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}, "PROVIDER_BUSY"),
        (503, {"error": {"message": "server busy, please try again.  maximum pending requests exceeded"}}, "PROVIDER_BUSY"),
        (429, {"error": {"message": "Slow down."}}, "PROVIDER_BUSY"),
        (504, "", "PROVIDER_TIMEOUT"),
        (401, {"error": "no"}, "PROVIDER_AUTH"),
        (403, "", "PROVIDER_AUTH"),
        (400, {"error": {"message": "Error rendering prompt with jinja template"}}, "PROVIDER_ERROR"),
        (422, {"detail": "messages: field required"}, "PROVIDER_ERROR"),
        (500, "", "PROVIDER_ERROR"),
        (500, None, "PROVIDER_ERROR"),
        (500, {"error": {"message": {"deep": [1]}}}, "PROVIDER_ERROR"),
        (500, ["?"], "PROVIDER_ERROR"),
    ],
)  # fmt: skip
def test_error_has_the_code_of_its_text_or_status(status: int, payload: Any, code: str) -> None:
    failure = reported(LMSTUDIO, payload, status)
    assert failure.code == code
    assert failure.message.startswith("LM Studio")


def test_message_repeats_what_the_server_said() -> None:
    assert reported(LMSTUDIO, {"error": {"message": NO_MODEL}}, 400).message == f"LM Studio said: {NO_MODEL}"


def test_web_page_is_not_shown() -> None:
    message = reported(LMSTUDIO, " <!DOCTYPE html><title>nginx</title>", 502).message
    assert message == "LM Studio answered with a web page and HTTP status 502. Check the url of the provider lmstudio."


def test_authentication_error_names_the_setting() -> None:
    assert "FIRESIDE_LMSTUDIO_API_KEY" in reported(LMSTUDIO, {"error": "bad"}, 401).message
    added = replace(LMSTUDIO, source="page")
    assert reported(added, {"error": "bad"}, 401).message.endswith("key in the settings, under Model servers.")
    assert reported(added, "<html>", 502).message.endswith("Check its address in the settings, under Model servers.")
    message = reported(BOX, {"error": "Invalid API Key"}, 401).message
    assert message == (
        "The box said: Invalid API Key. Fireside takes the key from api_key of the provider box in config.toml."
    )


@pytest.mark.parametrize(
    "words",
    [
        "Incorrect API key provided: sk-secret-0123456789.",
        "Malformed LM Studio API token provided: sk-secret-**************",
        "x" * 290 + "sk-secret-0123456789",
    ],
)
def test_message_does_not_contain_the_key_or_its_beginning(words: str) -> None:
    assert "sk-secre" not in reported(BOX, {"error": {"message": words}}, 401).message


def test_message_does_not_contain_the_address() -> None:
    words = {"error": "Cannot POST http://10.0.0.5:1234/v1/chat"}
    assert reported(BOX, words, 500).message == "The box said: Cannot POST http://[address]/v1/chat"


def test_message_is_one_short_line_without_control_characters() -> None:
    assert display_text("a\x1b[31m\r\n\tb \u202ec\x00 d\ud800") == "a [31m b c d"
    assert len(display_text("wörd " * 1000)) == 300
    assert len(reported(BOX, {"error": "y" * 100_000}, 500).message) < 400
    reported(BOX, {"error": "\ud800" * 400}, 500).message.encode()


@pytest.mark.parametrize("words", ["model ", "no models ", "not support", "context ", "(length ", " "])
def test_large_error_is_searched_quickly(words: str) -> None:
    began = time.thread_time()
    reported(LMSTUDIO, {"error": {"message": words * (1_000_000 // len(words))}})
    reported(LMSTUDIO, {"error": {"message": words * (60_000 // len(words)), "code": [[]] * 1000}})
    assert time.thread_time() - began < 0.3
