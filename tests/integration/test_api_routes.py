"""Facts of the routes as a whole; what each of them answers is walked in ``test_api_walk.py``."""

import contextlib
import socket

from api_cases import CONTRACT, bare
from api_server import Api
from ppworker.api.app import PREFIX, routes, schema
from ppworker.monitoring import ports


def test_the_29_routes_of_the_contract_are_there_by_name():
    there = {bare(f"{route.method} {route.path.removeprefix(PREFIX)}") for route in routes()}
    assert [route for route in CONTRACT if bare(route) not in there] == []
    assert len(CONTRACT) == 29


def test_the_running_application_publishes_the_schema_of_the_documentation(api: Api) -> None:
    assert api.me.get("/openapi.json").json() == schema()


def test_a_word_goes_before_an_id_in_the_same_place(api: Api) -> None:
    """What would be done to an id is not done to the word: it has methods of its own."""
    jobs = f"{api.dataset}/post-processors/jobs"
    assert api.me.get(jobs).json() == []
    for method in ("PUT", "DELETE"):
        refused = api.me.request(method, jobs)
        assert (refused.status_code, refused.headers["allow"]) == (405, "GET")


def test_answers_are_sent_at_once():
    """Else each waits 40 ms on a connection that is kept open: asyncio asks the socket's protocol."""
    with contextlib.closing(ports.listen("127.0.0.1", 0, setting="a test's port")) as opened:
        assert opened.proto == socket.IPPROTO_TCP
