"""How much of a rate limit the language model client uses, and whether it ever goes over it.

    python benchmarks/language_model.py            600 calls a minute, 20 seconds
    python benchmarks/language_model.py --faults   the same, with 30 % of the calls failing

A loopback server with the same limit counts the calls that come too fast: it allows a second's
worth at once, and answers the rest with 429.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from pydantic import BaseModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from servers import Answer, Call, Faults, OpenAIServer, Reply, said

from regforge.journal import Journal
from regforge.providers.language_model import LanguageModelClient, Question
from regforge.recipe.sections import LanguageModel


class Color(BaseModel):
    """What is asked for."""

    color: str


def main() -> None:
    """Print one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rpm", type=int, default=600, help="calls a minute")
    parser.add_argument("--seconds", type=float, default=20, help="about how long")
    parser.add_argument("--latency", type=float, default=0.3, help="seconds that a reply takes")
    parser.add_argument("--faults", action="store_true", help="let 30 %% of the calls fail")
    options = parser.parse_args()

    def answer(_: Call) -> Reply:
        return said('{"color": "red"}', wait=options.latency)

    count = round(options.rpm * options.seconds / 60)
    questions = [
        Question(f"color {n}", [{"role": "user", "content": f"Color {n}?"}], Color)
        for n in range(count + 1)
    ]
    chat: Answer = Faults(answer, hang=5) if options.faults else answer
    with OpenAIServer(chat, rpm=options.rpm) as server, tempfile.TemporaryDirectory() as folder:
        settings = LanguageModel(
            model="openai/loopback", api_base=server.url, rpm=options.rpm, timeout=2, cache=False
        )
        with LanguageModelClient(settings, journal=Journal(Path(folder))) as client:
            client.ask(questions[:1])  # LiteLLM loads half of itself on the way
            before = len(server.calls)
            answers = client.ask(questions[1:])
    calls = server.calls[before - 1 :]
    seconds = calls[-1].time - calls[0].time
    rate = (len(calls) - 1) / seconds * 60
    print(
        f"limit {options.rpm}/min: {len(calls)} calls in {seconds:.1f} s = {rate:.0f}/min, "
        f"{rate / options.rpm:.1%} of the limit; {server.violations} too fast, "
        f"{count - answers.count(None)} of {count} answered, {server.most_at_once} at once"
    )


if __name__ == "__main__":
    main()
