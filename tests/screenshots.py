"""`python -m tests.screenshots` takes the pictures in docs/screenshots/."""

import datetime
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Page, expect, sync_playwright

from .browser import DESKTOP, NO_ENGINE, PHONE, Fireside, Visit, launch
from .documents.making import pdf
from .live import good
from .upstream import Gate, LocalModel, Upstream, answer, pause, reasoning, text

FOLDER = Path(__file__).parent.parent / "docs" / "screenshots"
MODEL = "qwen3-8b"
MODELS = [
    LocalModel(MODEL, "Qwen3 8B", "llm", "qwen3", "Q4_K_M", 5_027_783_488, 40_960, instances={MODEL: 8192}),
    LocalModel("gemma-3-12b", "Gemma 3 12B", "vlm", "gemma3", "Q4_0", 8_070_000_000, 131_072),
    LocalModel("gpt-oss-20b", "gpt-oss 20B", "llm", "gpt-oss", "MXFP4", 12_110_000_000, 131_072),
]
OLDER = {  # titles, with their age in days
    "Regex for ISO dates": 0,
    "A weekend in Lisbon": 1,
    "Explain Raft like I'm twelve": 2,
    "Rust lifetimes, once more": 4,
    "Letter to the landlord": 9,
    "Birthday riddles": 16,
    "Photosynthesis quiz": 22,
    "SQL: gaps and islands": 45,
    "Names for a cat": 47,
}
FOLDERS = {
    "Kitchen": ["Birthday riddles"],
    "Work": ["SQL: gaps and islands", "Regex for ISO dates", "Rust lifetimes, once more"],
}
PROMPTS = {
    "Summarize": "Summarize this in five sentences:\n\n{{text}}",
    "Translate": "Translate into {{language}}:\n\n{{text}}",
    "Review code": "Review this code. List bugs first:\n\n{{code}}",
}
PRESETS = {
    "Patient teacher": "Explain step by step, with one example.",
    "Editor": "Correct my text. Change as little as possible.",
}
TITLE = "Sourdough in a cold kitchen"
QUESTION = "How do I get a sourdough to rise when my kitchen is only 17 °C?"
ANSWER = """A cool kitchen only slows things down; it does not stop them. What changes is **time**, and a little *temperature*.

| Dough temperature | Bulk rise | Proof in the fridge |
|:--|--:|--:|
| 18 °C | 9 h | 10 h |
| 21 °C | 6.5 h | 12 h |
| 24 °C | 4.5 h | 14 h |

Warm water does most of the work. How warm follows from $T_w = 3 T_d - T_f - T_k$:

```python
def water_temperature(dough: float, flour: float, kitchen: float) -> float:
    return 3 * dough - flour - kitchen  # °C; friction is ignored

print(water_temperature(24, 18, 17))  # 37.0
```

- [x] feed the starter the evening before
- [ ] keep a small jar of dough as a gauge: when *it* has doubled, so has the loaf
"""

FILLER = "Inspections of the bridges in the district, by month, with the work that each led to."
QUOTED = "The northern bridge was closed for eleven weeks because two of its bearings had cracked"
DOCUMENT_QUESTION = "Why was the northern bridge closed, and for how long?"
DOCUMENT_ANSWER = f"""The bearings were the reason. The report says:

> {QUOTED}.

It adds that “the mayor opened the bridge again with a ride across it in a golden coach”, on a Sunday."""


def conversation(title: str, days: float, question: str, answer: str, **stats: float) -> dict[str, Any]:
    time = (datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%S.%f")
    usage = {"prompt_tokens": 1320, "completion_tokens": 248, "total_tokens": 1568}
    model = {"model": MODEL, "provider_id": "lmstudio"}
    messages = [
        {"id": 1, "parent_id": None, "role": "user", "content": question, "created_at": time},
        {"id": 2, "parent_id": 1, "role": "assistant", "content": answer, "created_at": time}
        | {"stats": stats, "token_usage": usage}
        | model,
    ]
    head = {"fireside": 1, "title": title, "named": True, "created_at": time, "updated_at": time} | model
    return head | {"active_message_id": 2, "messages": messages}


def furnish(client: httpx.Client) -> int:
    """Import conversations. Returns the id of the one to show."""
    older = [conversation(title, days, "Hello", "Hello!") for title, days in OLDER.items()]
    stats = {"tokens_per_second": 31.4, "ttft_ms": 412, "total_ms": 8300, "context_length": 8192}
    good(client.post("/import", json=[*older, conversation(TITLE, 0.01, QUESTION, ANSWER, **stats)]))
    ids: dict[str, int] = {item["title"]: item["id"] for item in good(client.get("/conversations"))}
    good(client.patch(f"/conversations/{ids['A weekend in Lisbon']}", json={"pinned": True}))
    for name, titles in FOLDERS.items():
        folder = good(client.post("/folders", json={"name": name}))["id"]
        for one in titles:
            good(client.patch(f"/conversations/{ids[one]}", json={"folder_id": folder}))
    for name, content in PROMPTS.items():
        good(client.post("/prompts", json={"name": name, "content": content}))
    for name, system_prompt in PRESETS.items():
        good(client.post("/presets", json={"name": name, "system_prompt": system_prompt}))
    return ids[TITLE]


def ask_about_document(client: httpx.Client, upstream: Upstream) -> int:
    """Have a question about a document answered. Returns the id of the conversation."""
    pages = [f"Chapter {number}\n" + "\n".join([FILLER] * 25) for number in range(1, 121)]
    pages[88] += f"\n{QUOTED}."
    report = good(client.post("/attachments?name=bridges-2025.pdf", content=pdf(*pages)))["id"]
    while (document := good(client.get(f"/attachments/{report}")))["status"] == "reading":
        time.sleep(0.1)
    assert document["status"] == "ready"
    upstream.enqueue(answer(DOCUMENT_ANSWER, model=MODEL))
    fields = {"title": "The northern bridge", "provider_id": "lmstudio", "model": MODEL}
    message = {"content": DOCUMENT_QUESTION, "attachment_ids": [report]}
    chat: int = good(client.post("/conversations", json=fields | {"message": message}))["id"]
    with client.stream("POST", f"/conversations/{chat}/stream", json={}) as events:
        events.read()
    return chat


def take(page: Page, name: str) -> None:
    """Take a picture once all animations that end have ended."""
    page.wait_for_function(
        "() => document.getAnimations().every((one) => one.effect.getTiming().iterations === Infinity)"
    )
    page.screenshot(path=FOLDER / f"{name}.png")


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright, Upstream() as upstream, tempfile.TemporaryDirectory() as folder:
        upstream.models = MODELS
        browser = launch(playwright)
        with Fireside(Path(folder), NO_ENGINE.replace("Nothing", "Workstation"), lmstudio_url=upstream.url) as fireside:
            client = fireside.first("Anna")
            chat = furnish(client)
            start = Visit(browser, fireside.url, client, color_scheme="light", viewport=DESKTOP).open()
            expect(start.get_by_role("region", name="Your prompts")).to_be_visible()
            take(start, "start-light")
            for theme in ("light", "dark"):
                page = Visit(browser, fireside.url, client, color_scheme=theme, viewport=DESKTOP).open(f"/#/c/{chat}")
                expect(page.locator(".last .figures")).to_contain_text("31.4 tok/s")
                take(page, f"chat-{theme}")
            page.get_by_role("button", name="Model: Qwen3 8B").click()
            expect(page.locator(".model-pick")).to_have_count(3)
            take(page, "models-dark")

            start.goto(f"/#/c/{ask_about_document(client, upstream)}")
            expect(start.locator(".quotation-badge")).to_have_count(2)
            take(start, "document-light")

            gate = Gate()
            upstream.enqueue(reasoning("They know some Python."), text(ANSWER[:760]), pause(gate))
            phone = Visit(browser, fireside.url, client, viewport=PHONE, has_touch=True, device_scale_factor=2).open()
            phone.get_by_role("textbox", name="Message").fill(QUESTION)
            phone.get_by_role("button", name="Send").click()
            expect(phone.locator(".code")).to_be_visible()
            take(phone, "phone-light")
            gate.open()
        browser.close()


if __name__ == "__main__":
    main()
