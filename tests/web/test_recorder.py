"""Random requests of programs make exactly the conversations that a simple model of the rules makes."""

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any

from ..live import Person, Running
from ..trials import FULL, TRIALS
from ..upstream import DONE, Upstream, finish
from ..upstream import text as says
from .test_tokens import create, program

Turn = tuple[str, str]  # role and content
REQUESTS = 500 if TRIALS >= FULL else 100
PROGRAMS = 3
WORDS = ("Why?", "How?", "And then?", "Again, please.")


@dataclass
class Node:
    number: int  # in the order in which messages were added
    parent: "Node | None"
    turn: Turn

    @property
    def path(self) -> list[Turn]:
        return [*(self.parent.path if self.parent else []), self.turn]


@dataclass
class Talk:
    """A conversation of the model."""

    instructions: str
    nodes: list[Node] = field(default_factory=list)

    def rows(self) -> list[Any]:
        """Return parent, role and content of each message, oldest first."""
        places = {id(node): place for place, node in enumerate(self.nodes)}
        return [(places[id(node.parent)] if node.parent else None, *node.turn) for node in self.nodes]


class Model:
    """What one program has sent, and the conversations that follow from it."""

    def __init__(self) -> None:
        self.talks: list[Talk] = []
        self.count = 0

    def send(self, instructions: str, history: list[Turn], said: str) -> None:
        talk, node, known = self._longest_known(instructions, history)
        if talk is None:
            talk = Talk(instructions)
            self.talks.append(talk)
        talk.instructions = instructions
        for turn in [*history[known:], ("assistant", said)]:
            self.count += 1
            node = Node(self.count, node, turn)
            talk.nodes.append(node)

    def _longest_known(self, instructions: str, history: list[Turn]) -> tuple[Talk | None, Node | None, int]:
        for known in range(len(history), 0, -1):
            path = history[:known]
            answered = any(role == "assistant" for role, _ in path)
            found = [
                (node.number, talk, node)
                for talk in self.talks
                if answered or talk.instructions == instructions
                for node in talk.nodes
                if node.path == path
            ]
            if found:
                _, talk, node = max(found, key=lambda one: one[0])
                return talk, node, known
        return None, None, 0

    def next(self, dice: random.Random) -> tuple[str, list[Turn]]:
        """Return a request: mostly one that goes on from something known, in its order or edited."""
        instructions = dice.choice(("", "Be brief.", "Be kind."))
        nodes = [node for talk in self.talks for node in talk.nodes]
        question = ("user", dice.choice(WORDS))
        kind = dice.choice(("continue", "continue", "edit question", "edit answer", "repeat", "new", "unrelated"))
        if kind == "new" or not nodes:
            return instructions, [question]
        if kind == "unrelated":
            turns = [(role, f"{role} {dice.getrandbits(32)}") for role in ("user", "assistant", "user", "assistant")]
            return instructions, [*turns[: dice.randrange(1, 5)], question]
        path = dice.choice(nodes).path
        if kind == "continue" and path[-1][0] == "assistant":
            return instructions, [*path, question]
        if kind == "edit answer" and path[-1][0] == "assistant":
            return instructions, [*path[:-1], ("assistant", f"Not {path[-1][1]}"), question]
        place = max(index for index, (role, _) in enumerate(path) if role == "user")
        return instructions, [*path[:place], question if kind == "edit question" else path[place]]


async def test_requests_of_several_programs_make_exactly_the_expected_trees(
    running: Running, ann: Person, upstream: Upstream
) -> None:
    upstream.default = [lambda request: says(f"Answer {len(request.body) % 7}") + finish() + DONE]
    models = [Model() for _ in range(PROGRAMS)]

    async def use(number: int, model: Model) -> None:
        client, dice = program(running, await create(ann, str(number))), random.Random(number)
        for _ in range(REQUESTS // PROGRAMS):
            instructions, history = model.next(dice)
            sent = [{"role": "system", "content": instructions}] if instructions else []
            sent += [{"role": role, "content": content} for role, content in history]
            body = {"model": "lmstudio/llama-3.2-3b-instruct", "messages": sent, "stream": dice.random() < 0.5}
            response = await client.post("/v1/chat/completions", json=body)
            assert response.status_code == 200, response.text
            said = response.text if body["stream"] else response.json()["choices"][0]["message"]["content"]
            model.send(instructions, history, said if not body["stream"] else f"Answer {_digit(said)}")

    await asyncio.gather(*(use(number, model) for number, model in enumerate(models, 1)))

    def recorded(conn: Any, number: int) -> list[tuple[str, list[Any]]]:
        found = []
        sql = "SELECT id, system_prompt FROM conversations WHERE token_name = ? ORDER BY id"
        for conversation in conn.execute(sql, (str(number),)).fetchall():
            sql = "SELECT id, parent_id, role, content FROM messages WHERE conversation_id = ? ORDER BY id"
            rows = conn.execute(sql, (conversation["id"],)).fetchall()
            places = {row["id"]: place for place, row in enumerate(rows)}
            shown = [(places.get(row["parent_id"]), row["role"], row["content"]) for row in rows]
            found.append((conversation["system_prompt"], shown))
        return found

    for number, model in enumerate(models, 1):
        expected = [(talk.instructions, talk.rows()) for talk in model.talks]
        assert await running.state.database.read(recorded, number) == expected
    assert sum(len(model.talks) for model in models) > 20
    await ann.delete("/tokens/1")
    assert await running.state.database.read(recorded, 1) != []


def _digit(stream: str) -> str:
    return stream.partition("Answer ")[2][0]
