"""Pydantic AI, unchanged: typed outputs by both ways, an agent with a tool that ends. Usage: pydantic_agent.py URL MODEL"""

import sys
from typing import Literal

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

url, name = sys.argv[1:]
provider = OpenAIProvider(base_url=f"{url}/v1", api_key="none")
settings = {"temperature": 0, "max_tokens": 64}


class Colour(BaseModel):
    """A colour."""

    name: Literal["red", "green", "blue"]


def typed():
    for model in (OpenAIChatModel(name, provider=provider), OpenAIResponsesModel(name, provider=provider)):
        for output in (ToolOutput(Colour), NativeOutput(Colour)):
            agent = Agent(model, output_type=output, model_settings=settings, retries=0)
            result = agent.run_sync("Name a colour.")
            assert result.output.name in ("red", "green", "blue") and result.usage.output_tokens > 0, result


def tools():
    asked = []

    def step(context):
        # A small model does not choose well whether to call, so the application does.
        return {**settings, "tool_choice": "required" if context.run_step < 2 else "none"}

    agent = Agent(OpenAIChatModel(name, provider=provider), model_settings=step, retries=0)

    @agent.tool_plain
    def weather(city: Literal["Rome", "Oslo"]) -> str:
        """The weather of a city now."""
        asked.append(city)
        return f"It is sunny in {city}."

    result = agent.run_sync("What is the weather in Rome?")
    assert result.output and len(asked) == 1 and asked[0] in ("Rome", "Oslo"), result


for step in (typed, tools):
    step()
    print(step.__name__, "ok")
