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
    if path in ("/infill", "/completion"):
        body.setdefault("n_predict", 2)
    elif path in ("/api/chat", "/api/generate") and isinstance(body.get("options", {}), dict):
        body["options"] = {"num_predict": 2, **(body.get("options") or {})}
    elif path in ("/v1/responses", "/responses"):
        body.setdefault("max_output_tokens", 2)
    elif "completions" in path or path == "/v1/messages":
        body.setdefault("max_tokens", 2)
    return body
