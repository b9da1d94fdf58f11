"""What schema_check.py changes in requests that schemathesis makes: most are for the model that is there, and answers are short."""

import schemathesis

LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict")


@schemathesis.hook
def map_body(context, body):
    path = context.operation.path
    if not isinstance(body, dict):
        return body
    if isinstance(body.get("model"), str) and path != "/api/show":
        del body["model"]
    # A length that is wrong stays what it is.
    for name in LENGTHS:
        if isinstance(body.get(name), int) and body[name] > 2:
            body[name] = 2
    if path in ("/api/chat", "/api/generate"):
        if isinstance(body.get("options") or {}, dict):
            body["options"] = {**(body.get("options") or {}), "num_predict": 2}
        return body
    name = {"/infill": "n_predict", "/completion": "n_predict"}.get(path, "max_tokens")
    name = "max_output_tokens" if path.endswith("/responses") else name
    # Without a length, answers are as long as the context.
    if body.get(name) in (None, -1):
        body[name] = 2
    return body
