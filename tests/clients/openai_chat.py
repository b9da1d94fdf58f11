"""The OpenAI client, unchanged: chat, streams, tools, structured answers, errors. Usage: openai_chat.py URL MODEL"""

import json
import sys
from typing import Literal

from openai import BadRequestError, NotFoundError, OpenAI
from pydantic import BaseModel

url, model = sys.argv[1:]
client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def user(text):
    return [{"role": "user", "content": text}]


class Colour(BaseModel):
    name: Literal["red", "green", "blue"]
    warm: bool


TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city now.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}, "days": {"enum": [1, 2, 3]}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


def plain():
    answer = client.chat.completions.create(model=model, temperature=0, messages=user("Name a colour."), max_tokens=16)
    assert answer.choices[0].message.content and answer.usage.completion_tokens <= 16
    chunks = list(client.chat.completions.create(
        model=model, temperature=0, messages=user("Name a colour."), max_tokens=16, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage.completion_tokens > 0
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert client.models.list().data[0].id == model


def vectors():
    one = client.embeddings.create(model=model, input="The sky is blue.")
    assert one.data[0].object == "embedding" and one.usage.prompt_tokens > 0
    floats = client.embeddings.create(model=model, input=["The sky is blue.", "Cats sleep."], encoding_format="float")
    # The client asks for base64 by itself, which has the same numbers to the last bit of 32.
    pairs = zip(floats.data[0].embedding, one.data[0].embedding, strict=True)
    assert all(abs(a - b) < 1e-7 for a, b in pairs) and floats.data[1].index == 1
    length = sum(value * value for value in floats.data[1].embedding)
    assert abs(length - 1) < 1e-5, length
    short = client.embeddings.create(model=model, input="The sky is blue.", dimensions=8).data[0].embedding
    assert len(short) == 8 and abs(sum(value * value for value in short) - 1) < 1e-5
    try:
        client.embeddings.create(model=model, input="a " * 20000)
        raise AssertionError("it fits no context")
    except BadRequestError as error:
        assert error.code == "context_length_exceeded"


def structured():
    answer = client.chat.completions.parse(model=model, temperature=0, messages=user("Name a colour."), response_format=Colour, max_tokens=64)
    assert answer.choices[0].message.parsed.name in ("red", "green", "blue")
    answer = client.chat.completions.create(
        model=model, temperature=0, messages=user("Describe a cat."), response_format={"type": "json_object"}, max_tokens=200)
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content), dict)


def tools():
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        messages = user("What is the weather in Rome?")
        answer = client.chat.completions.create(
            model=model, temperature=0, messages=messages, tools=[TOOL], tool_choice=choice, max_tokens=128)
        call = answer.choices[0].message.tool_calls[0]
        arguments = json.loads(call.function.arguments)
        assert answer.choices[0].finish_reason == "tool_calls" and call.function.name == "weather"
        assert arguments["city"] in ("Rome", "Oslo") and arguments["days"] in (1, 2, 3)
        messages += [answer.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "Sunny, 21 degrees."}]
        final = client.chat.completions.create(model=model, temperature=0, messages=messages, tools=[TOOL], tool_choice="none", max_tokens=32)
        assert final.choices[0].message.content
    with client.chat.completions.stream(
            model=model, temperature=0, messages=user("What is the weather?"), tools=[TOOL], tool_choice="required", max_tokens=128) as stream:
        final = stream.get_final_completion()
    assert json.loads(final.choices[0].message.tool_calls[0].function.arguments)["city"] in ("Rome", "Oslo")


def errors():
    for request, error, code in [
        ({"model": "no-such-model"}, NotFoundError, "model_not_found"),
        ({"messages": user("word " * 20_000)}, BadRequestError, "context_length_exceeded"),
        ({"temperature": 3}, BadRequestError, None),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}}},
         BadRequestError, None),
    ]:
        try:
            client.chat.completions.create(**{"model": model, "messages": user("Hello"), "max_tokens": 4, **request})
        except error as caught:
            assert code is None or caught.code == code, caught
        else:
            raise AssertionError(f"{request} was not refused")


def responses():
    answer = client.responses.create(model=model, temperature=0, input="Name a colour.", max_output_tokens=16)
    assert answer.output_text and answer.usage.output_tokens <= 16
    with client.responses.stream(model=model, temperature=0, input="Name a colour.", max_output_tokens=16) as stream:
        final = [event.type for event in stream][-1]
    assert final in ("response.completed", "response.incomplete"), final
    flat = {"type": "function", **TOOL["function"]}
    called = client.responses.create(
        model=model, temperature=0, input="The weather in Rome?", tools=[flat], tool_choice="required", max_output_tokens=128)
    call = next(item for item in called.output if item.type == "function_call")
    assert json.loads(call.arguments)["city"] in ("Rome", "Oslo")


for step in (plain, vectors, structured, tools, responses, errors):
    step()
    print(step.__name__, "ok")
