"""Instructor, unchanged: both ways to an object of a type. Usage: instructor_extract.py URL MODEL"""

import sys
from typing import Literal

import instructor
from openai import OpenAI
from pydantic import BaseModel

url, model = sys.argv[1:]


class Colour(BaseModel):
    """A colour."""

    name: Literal["red", "green", "blue"]
    warm: bool


for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
    client = instructor.from_openai(OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0), mode=mode)
    asked = {"model": model, "temperature": 0, "max_tokens": 64, "messages": [{"role": "user", "content": "Name a colour."}]}
    answer = client.chat.completions.create(response_model=Colour, max_retries=0, **asked)
    assert isinstance(answer, Colour), answer
    partial = list(client.chat.completions.create_partial(response_model=Colour, max_retries=0, **asked))
    assert partial[-1].model_dump() == answer.model_dump(), partial
    print(mode, "ok")
