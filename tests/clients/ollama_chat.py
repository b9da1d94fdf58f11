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
vectors = client.embed(model=model, input=["The sky is blue.", "Cats sleep."])
assert len(vectors.embeddings) == 2 and vectors.prompt_eval_count > 0
assert abs(sum(value * value for value in vectors.embeddings[0]) - 1) < 1e-5
assert list(client.embeddings(model=model, prompt="Cats sleep.").embedding) == list(vectors.embeddings[1])
print("ollama ok")
