"""LlamaIndex, unchanged: texts, chats, a tool, an object of a type. Usage: llama_index_chat.py URL MODEL"""

import sys
from typing import Literal

from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

url, model = sys.argv[1:]
to = {"model": model, "api_base": f"{url}/v1", "api_key": "none", "temperature": 0, "max_retries": 0, "context_window": 2048}
asked = [ChatMessage(role="user", content="What is the weather in Rome?")]


class Colour(BaseModel):
    """A colour."""

    name: Literal["red", "green", "blue"]


def weather(city: Literal["Rome", "Oslo"]) -> str:
    """The weather of a city now."""
    return f"It is sunny in {city}."


def plain():
    text = OpenAILike(**to, max_tokens=8, is_chat_model=False)
    assert text.complete("The sky is").text == list(text.stream_complete("The sky is"))[-1].text != ""
    chat = OpenAILike(**to, max_tokens=8, is_chat_model=True)
    assert chat.chat(asked).message.content == list(chat.stream_chat(asked))[-1].message.content != ""


def tools():
    chat = OpenAILike(**to, max_tokens=64, is_chat_model=True, is_function_calling_model=True)
    tool = FunctionTool.from_defaults(weather)
    answer = chat.chat_with_tools([tool], chat_history=asked, tool_required=True)
    call = chat.get_tool_calls_from_response(answer)[0]
    assert call.tool_name == "weather" and call.tool_kwargs["city"] in ("Rome", "Oslo"), answer
    called = chat.predict_and_call([tool], chat_history=asked, tool_required=True)
    assert called.response == f"It is sunny in {call.tool_kwargs['city']}.", called


def structured():
    for more in ({"is_function_calling_model": True}, {"should_use_structured_outputs": True}):
        chat = OpenAILike(**to, max_tokens=64, is_chat_model=True, **more)
        colour = chat.structured_predict(Colour, PromptTemplate("Name a colour."))
        assert colour.name in ("red", "green", "blue"), colour


for step in (plain, tools, structured):
    step()
    print(step.__name__, "ok")
