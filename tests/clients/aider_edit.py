"""Aider, unchanged: one edit applied to a file. Usage: aider_edit.py URL MODEL"""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

url, model = sys.argv[1:]
# A small model finds no way to write an edit as it is wanted, so a grammar of the settings leaves it only the word.
SETTINGS = f"""
- name: openai/{model}
  edit_format: whole
  use_temperature: 0
  extra_params:
    max_tokens: 64
    extra_body:
      grammar: |
        root ::= "greeting.py\\n```\\nprint(\\"" word "\\")\\n```\\n"
        word ::= "hello" | "goodbye"
"""
OPTIONS = [
    "--yes-always", "--no-git", "--no-check-update", "--no-show-release-notes", "--analytics-disable", "--no-show-model-warnings",
    "--no-auto-lint", "--no-suggest-shell-commands", "--no-pretty", "--no-fancy-input", "--map-tokens", "0", "--no-detect-urls",
    "--no-gitignore",
]

with TemporaryDirectory() as folder:
    Path(folder, "settings.yml").write_text(SETTINGS)
    file = Path(folder, "greeting.py")
    file.write_text("print()\n")
    ran = subprocess.run(
        [sys.executable, "-m", "aider", "--model", f"openai/{model}", "--model-settings-file", "settings.yml", *OPTIONS,
         "--message", "Print a greeting.", "greeting.py"],
        cwd=folder, capture_output=True, text=True, timeout=240,
        env={**os.environ, "OPENAI_API_BASE": f"{url}/v1", "OPENAI_API_KEY": "none", "HOME": folder,
             "LITELLM_LOCAL_MODEL_COST_MAP": "True"})
    edited = file.read_text()
    assert edited in ('print("hello")\n', 'print("goodbye")\n'), (edited, ran.stdout, ran.stderr)
    assert "Applied edit to greeting.py" in ran.stdout, ran.stdout
print("edit ok")
