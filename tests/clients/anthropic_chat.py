"""The Anthropic client, unchanged: messages, streams, tools. Usage: anthropic_chat.py URL MODEL"""

import sys

from anthropic import Anthropic, BadRequestError

url, model = sys.argv[1:]
client = Anthropic(base_url=url, api_key="none", max_retries=0)
TOOL = {
    "name": "weather",
    "description": "The weather of a city now.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}}, "required": ["city"]},
}


def user(text):
    return [{"role": "user", "content": text}]


def plain():
    answer = client.messages.create(model=model, extra_body={"temperature": 0}, max_tokens=16, system="Be brief.", messages=user("Name a colour."))
    assert answer.content[0].text and answer.usage.output_tokens <= 16 and answer.stop_reason in ("end_turn", "max_tokens")
    with client.messages.stream(model=model, extra_body={"temperature": 0}, max_tokens=16, messages=user("Name a colour.")) as stream:
        text = "".join(stream.text_stream)
        assert text == stream.get_final_message().content[0].text
    assert client.messages.count_tokens(model=model, messages=user("Name a colour.")).input_tokens > 3


def tools():
    messages = user("What is the weather in Rome?")
    answer = client.messages.create(
        model=model, extra_body={"temperature": 0}, max_tokens=128, messages=messages, tools=[TOOL], tool_choice={"type": "tool", "name": "weather"})
    call = answer.content[-1]
    assert answer.stop_reason == "tool_use" and call.input["city"] in ("Rome", "Oslo")
    messages += [
        {"role": "assistant", "content": answer.content},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "Sunny."}]},
    ]
    final = client.messages.create(model=model, extra_body={"temperature": 0}, max_tokens=32, messages=messages, tools=[TOOL], tool_choice={"type": "none"})
    assert final.content[0].text
    with client.messages.stream(
            model=model, extra_body={"temperature": 0}, max_tokens=128, messages=user("The weather?"), tools=[TOOL], tool_choice={"type": "any"}) as stream:
        assert stream.get_final_message().content[-1].input["city"] in ("Rome", "Oslo")


def errors():
    try:
        client.messages.create(model=model, extra_body={"temperature": 0}, max_tokens=4, messages=user("word " * 20_000))
    except BadRequestError as caught:
        assert "maximum context length" in caught.message
    else:
        raise AssertionError("a long prompt was not refused")


for step in (plain, tools, errors):
    step()
    print(step.__name__, "ok")
