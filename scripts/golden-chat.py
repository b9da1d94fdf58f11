#!/usr/bin/env python3
"""Renders the chat templates of tests/golden/chat as transformers does, and writes what came out beside them.

    python3 -m venv venv && venv/bin/pip install transformers==5.23.0 jinja2==3.1.6
    venv/bin/python scripts/golden-chat.py [FOLDER]

FOLDER (default: tests/golden/chat) holds `conversations.json`, `templates.json` and a `NAME.jinja` for each template
named there; each gets a `NAME.json` with the text of every conversation, what the template raised, or the kind of error.
`dialect.json`, where there is one, holds small templates and their variables, and is filled in the same way.
"""

import datetime
import json
import pathlib
import sys

import jinja2
from transformers.utils import chat_template_utils

NOW = datetime.datetime(2024, 2, 29, 13, 34, 56)


class FixedClock(datetime.datetime):
    """The clock that `strftime_now` reads."""

    @classmethod
    def now(cls, tz=None):
        return NOW


def render(template, tokens, conversation):
    """The text of a conversation, or why there is none."""
    try:
        texts, _ = chat_template_utils.render_jinja_template(
            conversations=[conversation["messages"]],
            chat_template=template,
            tools=conversation.get("tools"),
            add_generation_prompt=conversation.get("add_generation_prompt", True),
            **tokens,
            **conversation.get("variables", {}),
        )
        return {"text": texts[0]}
    except jinja2.exceptions.TemplateError as error:
        # `raise_exception` makes the base class itself; the engine's own errors are of derived ones.
        raised = type(error) is jinja2.exceptions.TemplateError
        return {"raised": str(error)} if raised else {"error": type(error).__name__}
    except Exception as error:
        return {"error": type(error).__name__}


def lines(renders):
    """A JSON object, an entry a line."""
    written = lambda value: json.dumps(value, ensure_ascii=False)
    return "{\n" + ",\n".join(f" {written(key)}: {written(value)}" for key, value in renders.items()) + "\n}"


def fill_dialect(path):
    """Renders each small template of `path` with its variables."""
    dialect = json.loads(path.read_text(encoding="utf-8"))
    conversation = {"messages": [], "add_generation_prompt": False, "variables": dialect["variables"]}
    renders = {source: render(source, {}, conversation) for source in dialect["renders"]}
    variables = json.dumps(dialect["variables"], ensure_ascii=False)
    path.write_text(f'{{\n"variables": {variables},\n"renders": {lines(renders)}\n}}\n', encoding="utf-8")


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parents[1] / "tests/golden/chat")
    chat_template_utils.datetime = FixedClock
    conversations = json.loads((folder / "conversations.json").read_text(encoding="utf-8"))
    for name, about in json.loads((folder / "templates.json").read_text(encoding="utf-8")).items():
        with open(folder / f"{name}.jinja", encoding="utf-8", newline="") as file:
            template = file.read()
        tokens = {"bos_token": about["bos_token"], "eos_token": about["eos_token"]}
        renders = {case: render(template, tokens, conversation) for case, conversation in conversations.items()}
        (folder / f"{name}.json").write_text(lines(renders) + "\n", encoding="utf-8")
    if (folder / "dialect.json").exists():
        fill_dialect(folder / "dialect.json")


if __name__ == "__main__":
    main()
