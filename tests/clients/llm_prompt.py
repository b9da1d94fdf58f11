"""The command-line tool llm, unchanged: a prompt, a schema. Usage: llm_prompt.py URL MODEL"""

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

url, model = sys.argv[1:]
KNOWN = f"""
- model_id: mesh
  model_name: {model}
  api_base: {url}/v1
  api_key_name: mesh
  supports_schema: true
"""


def llm(*arguments):
    command = [Path(sys.executable).with_name("llm"), "-m", "mesh", "--key", "none", "-o", "temperature", "0", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


with TemporaryDirectory() as folder:
    os.environ["LLM_USER_PATH"] = folder
    Path(folder, "extra-openai-models.yaml").write_text(KNOWN)
    streamed = llm("-o", "max_tokens", "8", "Name a colour.")
    assert streamed.strip() and streamed == llm("--no-stream", "-o", "max_tokens", "8", "Name a colour.")
    schema = {"type": "object", "properties": {"warm": {"type": "boolean"}}, "required": ["warm"], "additionalProperties": False}
    answer = json.loads(llm("-o", "max_tokens", "32", "--schema", json.dumps(schema), "Is red warm?"))
    assert isinstance(answer["warm"], bool), answer
print("llm ok")
