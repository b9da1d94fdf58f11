"""LangGraph, unchanged: an agent that calls a tool, reads its result and ends. Usage: langgraph_agent.py URL MODEL"""

import sys
from typing import Literal

from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

url, model = sys.argv[1:]
chat = ChatOpenAI(base_url=f"{url}/v1", api_key="none", model=model, max_tokens=48, temperature=0, max_retries=0)


@tool
def weather(city: Literal["Rome", "Oslo"]) -> str:
    """The weather of a city now."""
    return f"It is sunny in {city}."


def agent(state):
    # A small model does not choose well whether to call, so the application does.
    choice = "none" if isinstance(state["messages"][-1], ToolMessage) else "required"
    return {"messages": [chat.bind_tools([weather], tool_choice=choice).invoke(state["messages"])]}


graph = StateGraph(MessagesState)
graph.add_node("agent", agent)
graph.add_node("tools", ToolNode([weather]))
graph.add_edge(START, "agent")
graph.add_conditional_edges("agent", tools_condition)
graph.add_edge("tools", "agent")
asked = {"messages": [("user", "What is the weather in Rome?")]}
for updates in (graph.compile().invoke(asked)["messages"], None):
    if updates is None:
        # The same, as it happens.
        streamed = graph.compile().stream(asked, stream_mode="updates")
        updates = [message for update in streamed for part in update.values() for message in part["messages"]]
    call, result, end = updates[-3:]
    assert isinstance(call, AIMessage) and call.tool_calls[0]["name"] == "weather", updates
    assert result.content == f"It is sunny in {call.tool_calls[0]['args']['city']}.", updates
    assert end.content and not end.tool_calls and end.response_metadata["finish_reason"] in ("stop", "length"), updates
    print("agent ok")
