"""The LiteLLM side: turns LiteLLM's calls into `Request`s and our errors into LiteLLM's.

LiteLLM takes seconds to import and, unless told otherwise, asks the network for prices; both are
why it is imported only in here, by functions, and with its environment set first.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any

from regforge.embedded.language_model.answering import LanguageModel, Request
from regforge.embedded.language_model.engine import Sampling
from regforge.embedded.language_model.errors import LanguageModelError, LanguageModelMissing

if TYPE_CHECKING:
    from litellm import ModelResponse
    from litellm.llms.custom_llm import CustomLLM

PROVIDER = "embedded"
NAME = "smollm2-135m"
_UNSUPPORTED = ("tools", "functions", "logprobs", "logit_bias", "audio")


def install(language_model: LanguageModel | None) -> None:
    """Make LiteLLM answer `embedded/...` with a language model; None keeps the one in place."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm

    others = [p for p in litellm.custom_provider_map if p["provider"] != PROVIDER]
    if language_model is None and len(others) < len(litellm.custom_provider_map):
        return
    handler = _handler(language_model or LanguageModel())
    litellm.custom_provider_map = [*others, {"provider": PROVIDER, "custom_handler": handler}]


def _handler(language_model: LanguageModel) -> CustomLLM:
    """An object that LiteLLM calls; a class in a function, because its base is LiteLLM's."""
    from litellm.llms.custom_llm import CustomLLM

    class Handler(CustomLLM):
        """LiteLLM passes everything by keyword, and more than we read."""

        def completion(self, *_: Any, **call: Any) -> ModelResponse:
            return _complete(language_model, call)

        async def acompletion(self, *_: Any, **call: Any) -> ModelResponse:
            return await asyncio.to_thread(_complete, language_model, call)

        def streaming(self, *_: Any, **call: Any) -> Any:
            raise _refusal(call, "does not stream; leave out stream=True")

        def astreaming(self, *_: Any, **call: Any) -> Any:
            raise _refusal(call, "does not stream; leave out stream=True")

    return Handler()


def _complete(language_model: LanguageModel, call: dict[str, Any]) -> ModelResponse:
    from litellm import Usage
    from litellm.exceptions import BadRequestError, NotFoundError

    request = _request(call)
    try:
        reply = language_model.reply(request)
    except LanguageModelMissing as error:
        raise NotFoundError(str(error), call["model"], PROVIDER) from error
    except LanguageModelError as error:
        raise BadRequestError(str(error), call["model"], PROVIDER) from error
    response = call["model_response"]
    response.model = call["model"]
    response.created = int(time.time())
    response.choices[0].message.content = reply.text
    response.choices[0].finish_reason = reply.finish_reason
    response.usage = Usage(
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.completion_tokens,
        total_tokens=reply.prompt_tokens + reply.completion_tokens,
    )
    response._hidden_params["response_cost"] = 0.0
    return response


def _request(call: dict[str, Any]) -> Request:
    options = call["optional_params"]
    if call["model"] != NAME:
        raise _refusal(call, f"is called {PROVIDER}/{NAME}")
    if refused := [name for name in _UNSUPPORTED if options.get(name)]:
        raise _refusal(call, f"does not support {', '.join(refused)}")
    if (options.get("n") or 1) != 1:
        raise _refusal(call, "gives one reply a call; vary the seed instead of n")
    temperature = options.get("temperature")
    stop = options.get("stop") or ()
    sampling = Sampling(
        temperature=1.0 if temperature is None else float(temperature),
        top_p=float(options.get("top_p") or 1.0),
        max_tokens=int(options.get("max_completion_tokens") or options.get("max_tokens") or 256),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
    )
    schema = _schema(options.get("response_format"))
    return Request(call["messages"], schema, options.get("seed"), sampling)


def _schema(response_format: dict[str, Any] | None) -> dict[str, Any] | None:
    """The JSON schema of a response format; LiteLLM has made dicts of pydantic models by now."""
    kind = (response_format or {}).get("type", "text")
    if response_format is None or kind == "text":
        return None
    named = response_format.get("json_schema") or {}
    schema = named.get("schema") or response_format.get("response_schema")
    return dict(schema) if schema else {"type": "object"}


def _refusal(call: dict[str, Any], why: str) -> Exception:
    from litellm.exceptions import BadRequestError

    message = f"the embedded language model {why}"
    return BadRequestError(message, call["model"], PROVIDER)
