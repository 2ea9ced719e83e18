"""The LiteLLM side: turns LiteLLM's calls into ours and our errors into LiteLLM's.

LiteLLM takes seconds to import and, unless told otherwise, asks the network for prices; both are
why it is imported only in here, by functions, and with its environment set first.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any

from regforge.embedded.language_model.choosing import LanguageModel
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

    options = call["optional_params"]
    if call["model"] != NAME:
        raise _refusal(call, f"is called {PROVIDER}/{NAME}")
    if refused := [name for name in _UNSUPPORTED if options.get(name)]:
        raise _refusal(call, f"does not support {', '.join(refused)}")
    if (options.get("n") or 1) != 1:
        raise _refusal(call, "gives one reply a call; vary the seed instead of n")
    # LiteLLM has made dicts of pydantic models by now.
    asked = options.get("response_format") or {}
    schema = (asked.get("json_schema") or {}).get("schema") or asked.get("response_schema")
    temperature = options.get("temperature")
    try:
        text = language_model.reply(
            call["messages"],
            schema,
            seed=options.get("seed"),
            temperature=1.0 if temperature is None else float(temperature),
        )
    except LanguageModelMissing as error:
        raise NotFoundError(str(error), call["model"], PROVIDER) from error
    except LanguageModelError as error:
        raise BadRequestError(str(error), call["model"], PROVIDER) from error
    response = call["model_response"]
    response.model = call["model"]
    response.created = int(time.time())
    response.choices[0].message.content = text
    response.choices[0].finish_reason = "stop"
    response.usage = Usage(prompt_tokens=0, completion_tokens=0, total_tokens=0)
    response._hidden_params["response_cost"] = 0.0
    return response


def _refusal(call: dict[str, Any], why: str) -> Exception:
    from litellm.exceptions import BadRequestError

    message = f"the embedded language model {why}"
    return BadRequestError(message, call["model"], PROVIDER)
