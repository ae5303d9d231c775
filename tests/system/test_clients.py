"""Clients of OpenAI's API as they are, against /v1: both packages of OpenAI, llm and LiteLLM.

Their packages are installed into .venv/servers when a test first needs them. A test is skipped only if that fails.
"""

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ..live import Person, Running, good
from ..upstream import DONE, MODEL, Upstream, answer, chunk, finish, usage
from ..web.test_tokens import create
from .test_model_servers import installed

pytestmark = pytest.mark.long

SECONDS = 120
NAME = f"lmstudio/{MODEL}"
CALL = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": '}}
REST = {"index": 0, "function": {"arguments": '"Oslo"}'}}

PYTHON = """
import json, openai, os
client = openai.OpenAI(base_url=os.environ["URL"], api_key=os.environ["TOKEN"], max_retries=0)
model, said = os.environ["MODEL"], []
messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}]
whole = client.chat.completions.create(model=model, messages=messages, temperature=0.5, extra_body={"top_k": 5})
said.append([whole.choices[0].message.content, whole.choices[0].finish_reason, whole.usage.total_tokens])
messages += [whole.choices[0].message, {"role": "user", "content": "More?"}]
chunks = list(client.chat.completions.create(model=model, messages=messages, stream=True, stream_options={"include_usage": True}))
said.append(["".join(one.choices[0].delta.content or "" for one in chunks if one.choices), chunks[-1].usage.total_tokens])
question = [{"role": "user", "content": "Weather?"}]
tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}]
asked = client.chat.completions.create(model=model, messages=question, tools=tools).choices[0].message
[call] = asked.tool_calls
said.append([call.function.name, json.loads(call.function.arguments)])
question += [asked, {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
with client.chat.completions.stream(model=model, messages=question, tools=tools) as stream:
    for event in stream:
        pass
    said.append(stream.get_final_completion().choices[0].message.content)
said.append([one.id for one in client.models.list()][0])
said.append(client.models.retrieve(model).id)
said.append(client.embeddings.create(model=model, input=["a", "b"], encoding_format="float").data[1].embedding)
for wrong in ({"model": "nothing"}, {"n": 2}):
    try:
        client.chat.completions.create(**{"model": model, "messages": question, **wrong})
    except openai.APIStatusError as error:
        said.append([type(error).__name__, error.code])
try:
    openai.OpenAI(base_url=os.environ["URL"], api_key="fs_x").models.list()
except openai.APIStatusError as error:
    said.append([type(error).__name__, error.code])
try:
    for one in client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Fail"}], stream=True):
        pass
except openai.APIError as error:
    said.append([type(error).__name__, error.code])
print(json.dumps(said))
"""

JAVASCRIPT = """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: process.env.URL, apiKey: process.env.TOKEN, maxRetries: 0 });
const model = process.env.MODEL, said = [];
const messages = [{ role: "system", content: "Be brief." }, { role: "user", content: "Hello?" }];
const whole = await client.chat.completions.create({ model, messages });
said.push([whole.choices[0].message.content, whole.choices[0].finish_reason, whole.usage.total_tokens]);
messages.push(whole.choices[0].message, { role: "user", content: "More?" });
let text = "", tokens = 0;
for await (const chunk of await client.chat.completions.create({ model, messages, stream: true, stream_options: { include_usage: true } })) {
  text += chunk.choices[0]?.delta.content ?? "";
  tokens = chunk.usage?.total_tokens ?? tokens;
}
said.push([text, tokens]);
const tools = [{ type: "function", function: { name: "weather", parameters: { type: "object", properties: {} } } }];
const question = [{ role: "user", content: "Weather?" }];
const asked = (await client.chat.completions.create({ model, messages: question, tools })).choices[0].message;
const [call] = asked.tool_calls;
said.push([call.function.name, JSON.parse(call.function.arguments)]);
question.push(asked, { role: "tool", tool_call_id: call.id, content: "rain" });
said.push((await client.chat.completions.create({ model, messages: question, tools })).choices[0].message.content);
try {
  await client.chat.completions.create({ model: "nothing", messages });
} catch (error) {
  said.push([error.constructor.name, error.code]);
}
console.log(JSON.stringify(said));
"""

LITELLM = """
import json, litellm, os
common = {"model": f"openai/{os.environ['MODEL']}", "api_base": os.environ["URL"], "api_key": os.environ["TOKEN"], "num_retries": 0}
messages, said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}], []
whole = litellm.completion(messages=messages, **common)
said.append([whole.choices[0].message.content, whole.choices[0].finish_reason, whole.usage.total_tokens])
messages += [whole.choices[0].message.model_dump(), {"role": "user", "content": "More?"}]
chunks = list(litellm.completion(messages=messages, stream=True, stream_options={"include_usage": True}, **common))
said.append(["".join(one.choices[0].delta.content or "" for one in chunks if one.choices), 14])
tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
question = [{"role": "user", "content": "Weather?"}]
asked = litellm.completion(messages=question, tools=tools, **common).choices[0].message
[call] = asked.tool_calls
said.append([call.function.name, json.loads(call.function.arguments)])
question += [asked.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
said.append(litellm.completion(messages=question, tools=tools, **common).choices[0].message.content)
print(json.dumps(said))
"""


def script(upstream: Upstream) -> None:
    """Let the model server say two things, call a tool, and say something with the result."""
    call = chunk({"role": "assistant", "content": None, "tool_calls": [CALL]}) + chunk({"tool_calls": [REST]})
    for said in (
        answer("Hel", "lo."),
        answer("Mo", "re."),
        call + finish("tool_calls") + usage(5, 6) + DONE,
        answer("Ra", "in."),
    ):
        upstream.enqueue(said)


SAID: list[Any] = [["Hello.", "stop", 14], ["More.", 14], ["weather", {"city": "Oslo"}], "Rain."]


async def run(running: Running, ann: Person, *command: object, cwd: Path, **environ: str) -> str:
    """Run a client to its end and return what it printed."""
    environ |= {"URL": f"{running.url}/v1", "TOKEN": await create(ann, "Client"), "MODEL": NAME}
    process = await asyncio.create_subprocess_exec(
        *map(str, command), cwd=cwd, env=os.environ | environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), SECONDS)
    assert process.returncode == 0, err.decode()[-3000:]
    return out.decode()


async def recorded(ann: Person) -> AsyncIterator[tuple[str, list[Any]]]:
    """Yield the instructions of each conversation, oldest first, with the role, content and tools of its messages."""
    for conversation in reversed(good(await ann.get("/conversations"))):
        found = await ann.messages(conversation["id"])
        assert all(one["status"] == "complete" for one in found)
        tools = [(one.get("tools", {}).get("results", []), one.get("tools", {}).get("calls", [])) for one in found]
        shown = [
            (one["role"], one["content"], len(results), len(calls))
            for one, (results, calls) in zip(found, tools, strict=True)
        ]
        yield conversation["system_prompt"], shown


RECORD = [
    (
        "Be brief.",
        [
            ("user", "Hello?", 0, 0),
            ("assistant", "Hello.", 0, 0),
            ("user", "More?", 0, 0),
            ("assistant", "More.", 0, 0),
        ],
    ),
    ("", [("user", "Weather?", 0, 0), ("assistant", "", 0, 1), ("assistant", "Rain.", 1, 0)]),
]


async def test_openai_for_python(running: Running, ann: Person, upstream: Upstream, tmp_path: Path) -> None:
    commands = installed("openai", "openai==3.57.0")
    script(upstream)
    upstream.enqueue(chunk({"content": "Half"}) + b'data: {"error": {"message": "Compute error."}}\n\n')
    said = json.loads(await run(running, ann, commands / "python", "-c", PYTHON, cwd=tmp_path))
    assert said[:4] == SAID
    assert said[4:7] == [NAME, NAME, [0.5, -0.25]]
    assert said[7:] == [
        ["NotFoundError", "model_not_found"],
        ["BadRequestError", "validation_error"],
        ["AuthenticationError", "invalid_api_key"],
        ["APIError", "provider_error"],
    ]
    first = upstream.chats[0]
    assert (first["temperature"], first["top_k"], first["model"]) == (0.5, 5, MODEL)
    [failed] = [one["id"] for one in good(await ann.get("/conversations")) if one["title"] == "Fail"]
    assert [one["status"] for one in await ann.messages(failed)] == ["complete", "error"]
    good(await ann.delete(f"/conversations/{failed}"))
    assert [one async for one in recorded(ann)] == RECORD


async def test_openai_for_javascript(running: Running, ann: Person, upstream: Upstream, tmp_path: Path) -> None:
    modules = installed("openai-js", "openai@7.59.0").parent
    script(upstream)
    (tmp_path / "node_modules").symlink_to(modules, target_is_directory=True)
    (tmp_path / "client.mjs").write_text(JAVASCRIPT, "utf-8")
    said = json.loads(await run(running, ann, "node", "client.mjs", cwd=tmp_path))
    assert said == [*SAID, ["NotFoundError", "model_not_found"]]
    assert [one async for one in recorded(ann)] == RECORD


async def test_litellm(running: Running, ann: Person, upstream: Upstream, tmp_path: Path) -> None:
    commands = installed("litellm-client", "litellm[proxy]==1.108.7")
    script(upstream)
    environ = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "HOME": str(tmp_path)}
    said = json.loads(await run(running, ann, commands / "python", "-c", LITELLM, cwd=tmp_path, **environ))
    assert said == SAID
    assert [one async for one in recorded(ann)] == RECORD


async def test_llm(running: Running, ann: Person, upstream: Upstream, tmp_path: Path) -> None:
    commands = installed("llm", "llm==0.36")
    model = {"model_id": "fireside", "model_name": NAME, "api_base": f"{running.url}/v1", "api_key_name": "fireside"}
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([model]), "utf-8")
    key = await create(ann, "llm")
    (tmp_path / "keys.json").write_text(json.dumps({"fireside": key}), "utf-8")
    upstream.enqueue(answer("Hel", "lo."))
    upstream.enqueue(answer("Mo", "re."))
    environ = {"LLM_USER_PATH": str(tmp_path), "HOME": str(tmp_path)}
    first = ("-m", "fireside", "-s", "Be brief.", "Hello?")
    assert (await run(running, ann, commands / "llm", *first, cwd=tmp_path, **environ)).strip() == "Hello."
    second = ("-c", "--no-stream", "More?")
    assert (await run(running, ann, commands / "llm", *second, cwd=tmp_path, **environ)).strip() == "More."
    assert [one async for one in recorded(ann)] == RECORD[:1]
