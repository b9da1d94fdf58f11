"""LangChain, unchanged: structured answers and calls. Usage: langchain_chat.py URL MODEL"""

import sys
from typing import Literal

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from openai import LengthFinishReasonError
from pydantic import BaseModel

url, model = sys.argv[1:]
chat = ChatOpenAI(base_url=f"{url}/v1", api_key="none", model=model, max_tokens=96, temperature=0, max_retries=0)


class Colour(BaseModel):
    """A colour."""

    name: Literal["red", "green", "blue"]


@tool
def weather(city: Literal["Rome", "Oslo"]) -> str:
    """The weather of a city now."""
    return f"It is sunny in {city}."


for method in ("json_schema", "function_calling"):
    answer = chat.with_structured_output(Colour, method=method, include_raw=True).invoke("Name a colour.")
    assert answer["parsed"].name in ("red", "green", "blue"), answer
    print(method, "ok")

try:
    answer = chat.with_structured_output(None, method="json_mode").invoke("Name a colour, as JSON with the key name.")
    assert isinstance(answer, dict), answer
except LengthFinishReasonError:
    # Any object will do, and a small model may find no end of one.
    pass
print("json_mode ok")

called = chat.bind_tools([weather], tool_choice="required").invoke("What is the weather in Rome?")
assert called.tool_calls[0]["args"]["city"] in ("Rome", "Oslo"), called
print("tools ok")
