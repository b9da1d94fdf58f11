"""Schemathesis, unchanged, over the OpenAPI document that is served: no server error, and every answer as the document says.
Usage: schema_check.py URL MODEL"""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

url, _ = sys.argv[1:]
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance"
)
OPTIONS = ["--checks", CHECKS, "--phases", "fuzzing", "--mode", "all", "--max-examples", "4", "--seed", "1", "--generation-deterministic",
           # It never ends.
           "--exclude-path", "/api/events",
           "--request-timeout", "60", "--no-color", "--suppress-health-check", "all"]

with TemporaryDirectory() as folder:
    # It runs where it finds nothing and leaves nothing.
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "schema_hooks", "PYTHONPATH": str(Path(__file__).parent)}
    command = [Path(sys.executable).with_name("schemathesis"), "run", f"{url}/openapi.json", *OPTIONS]
    sys.exit(subprocess.run(command, cwd=folder, env=environment).returncode)
