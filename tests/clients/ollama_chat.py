"""The Ollama client, unchanged: chat, generate, lists. Usage: ollama_chat.py URL MODEL"""

import sys

from ollama import Client

url, model = sys.argv[1:]
client = Client(host=url)


def user(text):
    return [{"role": "user", "content": text}]


short = {"num_predict": 16, "temperature": 0}
assert any(one.model.split(":")[0] == model for one in client.list().models)
assert "completion" in client.show(model).capabilities
answer = client.chat(model=model, messages=user("Name a colour."), options=short)
assert answer.message.content and answer.done and answer.eval_count <= 16
chunks = list(client.chat(model=model, messages=user("Name a colour."), options=short, stream=True))
assert chunks[-1].done and "".join(chunk.message.content or "" for chunk in chunks)
assert client.generate(model=model, prompt="The sky is", options=short).response
print("ollama ok")
