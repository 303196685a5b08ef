"""What the fuzzer must be told to speak with the API: loaded by it, not by the tests."""

import json
from typing import Any

import schemathesis


@schemathesis.serializer("application/x-ndjson")
def lines(_context: Any, value: Any) -> bytes:
    """JSON Lines go as they are."""
    return (
        value.encode("utf-8", "replace") if isinstance(value, str) else json.dumps(value).encode()
    )


@schemathesis.hook
def before_call(_context: Any, case: Any, _kwargs: Any) -> None:
    """Ids that an answer leaves empty are no ids: the path would be another one without them."""
    for name, value in case.path_parameters.items():
        if value == "":
            case.path_parameters[name] = "none"
