"""LiteLLM: its import, its keys and prices, and the event loop that it runs in.

Two of its calls are used, `acompletion` and `aimage_generation`, with its own retries off: those,
limits, cache and checks are ours, because its own reject calls instead of queueing them, need
packages that it does not install, or forget the server's address.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import json
import logging
import math
import os
import signal
import threading
import warnings
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any, TypeVar
from urllib.parse import urlsplit

T = TypeVar("T")

# Another name that a provider's key has, or what takes its place.
_INSTEAD = {
    "AZURE_API_KEY": "AZURE_AD_TOKEN",
    "HUGGINGFACE_API_KEY": "HF_TOKEN",
    "REPLICATE_API_KEY": "REPLICATE_API_TOKEN",
}
SELF_HOSTED = ("hosted_vllm/", "lm_studio/", "openai_like/")
"""Providers that are nowhere unless an address says where."""

_MOST_TOKENS = 100_000_000


@functools.cache
def litellm() -> ModuleType:
    """LiteLLM, imported, which takes seconds, without network and without output."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    os.environ.setdefault("LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS", "True")
    os.environ.setdefault("LITELLM_MODE", "PRODUCTION")  # or it would read .env files
    import litellm as library

    library.suppress_debug_info = True
    for name in ("litellm", "LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "Pydantic serializer warnings")  # of odd replies
    _amend()
    return library


def _amend() -> None:
    """Put right two things that LiteLLM has no setting for."""

    def once(send: Callable[..., Any]) -> Callable[..., Any]:
        # It takes `max_retries` and does not hand it on, so that the OpenAI client repeats calls
        # by itself, unseen and perhaps billed.
        def sent(*args: Any, optional_params: dict[str, Any], **more: Any) -> Any:
            return send(*args, optional_params={**optional_params, "max_retries": 0}, **more)

        return sent

    def lenient(convert: Callable[..., Any]) -> Callable[..., Any]:
        # It fails on contents in parts and on odd counts of tokens, after the call was paid for.
        def converted(*args: Any, response_object: Any = None, **more: Any) -> Any:
            if more.get("response_type", "completion") == "completion":
                response_object = _tidied(response_object)
            return convert(*args, response_object=response_object, **more)

        return converted

    images: Any = import_module("litellm.images.main")
    for client in (images.openai_chat_completions, images.azure_chat_completions):
        client.image_generation = once(client.image_generation)
    for name in ("openai", "chat.gpt_transformation"):
        route: Any = import_module(f"litellm.llms.openai.{name}")
        route.convert_to_model_response_object = lenient(route.convert_to_model_response_object)


def _tidied(response: Any) -> Any:
    """A reply whose contents are text, without a usage that cannot be right."""
    if not isinstance(response, dict):
        return response
    response, usage = dict(response), response.get("usage")
    if isinstance(response.get("error"), str):
        response["error"] = {"message": response["error"], "code": 500}
    choices = response.get("choices")
    response["choices"] = list(map(_with_text, choices)) if isinstance(choices, list) else []
    counts = ("prompt_tokens", "completion_tokens")
    if usage is not None and (
        not isinstance(usage, dict) or any(token_count(usage.get(name)) is None for name in counts)
    ):
        del response["usage"]
    return response


def _with_text(choice: Any) -> Any:
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict) or isinstance(message.get("content"), str | None):
        return choice
    return {**choice, "message": {**message, "content": text_of(message["content"])}}


def text_of(content: Any) -> str:
    """The text of a message's content, which may come in parts; thoughts are left out."""
    if isinstance(content, list):
        return "".join(map(text_of, content))
    if isinstance(content, Mapping):
        if content.get("type") in ("thinking", "reasoning"):
            return ""
        text = content.get("text", content.get("content"))
        return json.dumps(content) if text is None else text_of(text)
    return content if isinstance(content, str) else ""


async def close_clients() -> None:
    """Close what LiteLLM holds open."""
    await litellm().close_litellm_async_clients()
    litellm().in_memory_llm_clients_cache.flush_cache()  # they belong to this event loop


# -------------------------------------------------------------------------------- keys and prices


def is_local(model: str, base: str | None) -> bool:
    """Whether a model runs on this machine or in its network, where nobody sends a bill."""
    try:
        host = urlsplit(base or _own_base(model) or "").hostname or ""
        if host == "localhost" or host.endswith((".localhost", ".local", ".internal")):
            return True
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_private


def _own_base(model: str) -> str | None:
    """Where LiteLLM looks for a server of one's own that the recipe gives no address of."""
    provider = model.partition("/")[0].removesuffix("_chat")
    if provider != "ollama" and not model.startswith(SELF_HOSTED):
        return None  # a proxy of a service may be here too, and its bill comes all the same
    base = os.environ.get(f"{provider.upper()}_API_BASE")
    return base or ("http://localhost:11434" if provider == "ollama" else None)


def key_of(model: str) -> tuple[str, bool]:
    """The environment variable of the provider's key, and whether it is missing."""
    try:
        missing = litellm().validate_environment(model).get("missing_keys") or []
        provider = litellm().get_llm_provider(model)[1]
    except Exception:  # it raises plain exceptions for models it does not know
        return "that LiteLLM reads", False
    keys = [name for name in missing if name.endswith(("KEY", "TOKEN"))]
    return (" or ".join(keys) or f"{provider.upper()}_API_KEY", bool(keys))


def not_ready(section: str, model: str, base: str | None) -> tuple[str, str] | None:
    """Why a model cannot be asked, as far as is known before, and what to do; None if it can.

    `section` of the recipe names the model, and may name its server, `base`. Most servers of one's
    own need no key.
    """
    if model.startswith("embedded/"):
        return None
    if (base or _own_base(model)) is None and model.startswith(SELF_HOSTED):
        return (
            f"There is no address for {model}.",
            f"Put the server's URL into {section}.api_base: http://127.0.0.1:8000/v1.",
        )
    try:
        litellm().get_llm_provider(model)
    except Exception:  # it raises plain exceptions for models it does not know
        return (
            f"{model!r} names no provider that LiteLLM knows.",
            f"Write provider/model in {section}.model, such as ollama_chat/llama3.1, or "
            f"openai/my-model with {section}.api_base.",
        )
    if base is None and (key := _missing_key(model)) is not None:
        return f"There is no API key for {model}.", f"Set the environment variable {key}."
    return None


def _missing_key(model: str) -> str | None:
    key, missing = key_of(model)
    names = key.split(" or ")
    set_elsewhere = any(os.environ.get(_INSTEAD.get(name, "")) for name in names)
    # Others, such as AWS's, can also lie in files.
    only_here = all(name.endswith("_API_KEY") for name in names)
    return key if missing and only_here and not set_elsewhere else None


@dataclass(frozen=True)
class Price:
    """US dollars for a token read and for one written."""

    read: float
    written: float

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """US dollars for so many."""
        return self.read * prompt_tokens + self.written * completion_tokens


def listed_price(model: str) -> Price | None:
    """The price of tokens in LiteLLM's list, where 0 means that nobody has looked."""
    if model.startswith("ollama"):
        return None  # LiteLLM would ask the server about it
    try:
        listed = litellm().get_model_info(model)
    except Exception:  # it raises plain exceptions for models it does not know
        return None
    read, written = listed.get("input_cost_per_token"), listed.get("output_cost_per_token")
    return Price(read or 0.0, written or 0.0) if read or written else None


def listed_image_price(model: str, width: int, height: int) -> float | None:
    """The price of an image in LiteLLM's list, in US dollars."""
    from litellm.cost_calculator import default_image_cost_calculator

    try:
        bare, provider, *_ = litellm().get_llm_provider(model)
    except Exception:  # it raises plain exceptions for models it does not know
        return None
    for name in (model, bare):
        for quality in (None, "high", "hd", "standard"):  # the dearest that there may be
            with suppress(Exception):
                price = default_image_cost_calculator(
                    name, provider, quality=quality, size=f"{width}x{height}"
                )
                if money(price):
                    return float(price)
    return None


def money(value: Any) -> float | None:
    """US dollars that a server or LiteLLM names; None if they cannot be right."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and value >= 0 else None


def token_count(value: Any) -> int | None:
    """A number of tokens that a server names; None if it cannot be right."""
    count = money(value)
    if count is None or count > _MOST_TOKENS or not count.is_integer():
        return None
    return int(count)


# ------------------------------------------------------------------------------------- event loop


class EventLoop:
    """One event loop for several pieces of work; started with the first."""

    def __init__(self) -> None:
        self._runner: asyncio.Runner | None = None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Carry it out. Ctrl-C cancels it and is raised when it has ended."""
        runner = self._runner = self._runner or asyncio.Runner()

        def complete() -> T:
            try:
                return runner.run(work)
            except KeyboardInterrupt:
                _end_tasks(runner.get_loop())  # the work may still be there, half done
                raise

        return _outside_a_loop(complete)

    def close(self) -> None:
        """End what is left over; work that comes later gets a new loop."""
        if (runner := self._runner) is None:
            return
        self._runner = None

        def close() -> None:
            _end_tasks(runner.get_loop())
            runner.close()

        _outside_a_loop(close)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C end what computes in the main thread; asyncio would wait until it is done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _outside_a_loop(action: Callable[[], T]) -> T:
    """Call in a thread of its own where this one runs an event loop, as those of notebooks do."""
    running = None
    with suppress(RuntimeError):
        running = asyncio.get_running_loop()
    if running is None:  # not within an `except`, which errors would take for their context
        return action()
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(action).result()


def _end_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """End everything that runs in an event loop, which itself stands still."""
    for _ in range(3):
        tasks = asyncio.all_tasks(loop)
        if not tasks:
            return
        for task in tasks:
            task.cancel()
        # A task that was struck by Ctrl-C throws it at whoever runs the loop next.
        with suppress(KeyboardInterrupt):
            loop.run_until_complete(asyncio.wait(tasks))
        for task in tasks:
            if task.done() and not task.cancelled():
                task.exception()  # or asyncio complains that nobody asked
