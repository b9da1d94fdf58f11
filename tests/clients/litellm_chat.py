"""LiteLLM, unchanged: chat, streams, tools, structured answers, vectors, errors by kind. Usage: litellm_chat.py URL MODEL"""

import json
import os
import sys

# Prices of other people's models are not fetched for this.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm
from pydantic import BaseModel

url, model = sys.argv[1:]
# It would tell people where to complain about it.
litellm.suppress_debug_info = True
to = {"model": f"openai/{model}", "api_base": f"{url}/v1", "api_key": "none", "num_retries": 0}
chat = {**to, "temperature": 0}


class Answer(BaseModel):
    warm: bool


def user(text):
    return [{"role": "user", "content": text}]


def plain():
    answer = litellm.completion(**chat, messages=user("Name a colour."), max_tokens=8)
    assert answer.choices[0].message.content and answer.choices[0].finish_reason in ("stop", "length")
    assert 0 < answer.usage.completion_tokens <= 8
    chunks = list(litellm.completion(
        **chat, messages=user("Name a colour."), max_tokens=8, stream=True, stream_options={"include_usage": True}))
    built = litellm.stream_chunk_builder(chunks)
    assert built.choices[0].message.content == answer.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == answer.usage.completion_tokens


def tools():
    parameters = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]}
    tool = {"type": "function", "function": {"name": "weather", "parameters": parameters}}
    answer = litellm.completion(**chat, messages=user("The weather?"), tools=[tool], tool_choice="required", max_tokens=64)
    call = answer.choices[0].message.tool_calls[0].function
    assert answer.choices[0].finish_reason == "tool_calls" and call.name == "weather"
    assert json.loads(call.arguments)["city"] in ("Rome", "Oslo")


def structured():
    answer = litellm.completion(**chat, messages=user("Is red warm?"), response_format=Answer, max_tokens=32)
    Answer.model_validate_json(answer.choices[0].message.content)


def vectors():
    answer = litellm.embedding(**to, input=["The sky is blue.", "Cats sleep."])
    assert len(answer.data) == 2 and len(answer.data[0]["embedding"]) > 100


def errors():
    for request, error in [
        ({"messages": user("word " * 20_000)}, litellm.ContextWindowExceededError),
        ({"messages": user("Hello"), "temperature": 3}, litellm.BadRequestError),
        ({"messages": user("Hello"), "model": "openai/no-such-model"}, litellm.NotFoundError),
    ]:
        try:
            litellm.completion(**{**chat, **request}, max_tokens=4)
        except error:
            continue
        raise AssertionError(f"{error} was not raised")


for step in (plain, tools, structured, vectors, errors):
    step()
    print(step.__name__, "ok")
