"""What the tests of the language model client share: a way to make one, and time that flies."""

import io
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from servers import FlyingTime, OpenAIServer

from regforge import journal
from regforge.journal import Journal, Reporter
from regforge.providers.language_model import LanguageModelClient, Question
from regforge.recipe.sections import LanguageModel

KEY = "sk-test-0123456789abcdef"


class Color(BaseModel):
    """What most questions ask for."""

    color: str


RED = '{"color": "red"}'
PRICES = {"input_cost_per_token": 0.001, "output_cost_per_token": 0.002}


def questions(count: int = 1, **more: Any) -> list[Question]:
    return [
        Question(**({"item": f"color {n}", "messages": user(f"Color {n}?"), "reply": Color} | more))
        for n in range(count)
    ]


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


class Bench:
    """Makes clients that write into one folder, and reads what they wrote."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.time = FlyingTime()
        self.cache = folder / "cache"
        self.told = io.StringIO()
        self._open: list[LanguageModelClient] = []

    def client(
        self, server: OpenAIServer | str | None = None, *, flying: bool = True, **settings: Any
    ) -> LanguageModelClient:
        base = server.url if isinstance(server, OpenAIServer) else server
        settings = {"model": "openai/local", "api_base": base, "timeout": 20} | settings
        client = LanguageModelClient(
            LanguageModel(**settings),
            journal=Journal(self.folder),
            cache_dir=self.cache,
            reporter=Reporter(stream=self.told),
            clock=self.time if flying else None,
        )
        self._open.append(client)
        return client

    def ask(self, server: OpenAIServer | None, count: int = 1, **settings: Any) -> list[Any]:
        """Questions of a new client, without its cache."""
        return self.client(server, cache=False, **settings).ask(questions(count))

    def close(self) -> None:
        for client in self._open:
            client.close()

    @property
    def ledger(self) -> list[dict[str, Any]]:
        return list(journal.read(self.folder / "ledger.jsonl"))

    @property
    def log(self) -> list[dict[str, Any]]:
        """The calls that have ended."""
        log = journal.read(self.folder / "log.jsonl")
        return [entry for entry in log if entry["event"] == "llm_call"]

    @property
    def reasons(self) -> str:
        return "\n".join(entry["reason"] for entry in self.ledger)

    def kept_files(self) -> list[Path]:
        return sorted(self.cache.rglob("*.json"))

    def all_text(self) -> str:
        """Everything that was written, in any file."""
        return "\n".join(p.read_text() for p in self.folder.rglob("*") if p.is_file())


def color_of(call: Any) -> str:
    """A reply that says which question it answers."""
    return json.dumps({"color": call.text.split("?")[0].lower()})
