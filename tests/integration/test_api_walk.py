"""A walk over the router: what every route answers, to whom, and what it refuses.

The cases stand in ``tests/api_cases.py``; a route without one fails here.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import httpx2
import pytest

from api_cases import CASES, Case, bare
from api_server import Api, new_user
from api_shapes import PROBLEM, Raw, fits, holds
from api_things import Things, digest, filled, make_things, served_world, username
from ppworker.api.app import PREFIX, routes, schema
from ppworker.pipeline.deps import Deps

pytestmark = pytest.mark.xdist_group("api-walk")


@pytest.fixture(scope="module")
def api(module_deps: Deps) -> Iterator[Api]:
    """One server and one database for the whole walk."""
    with served_world(module_deps) as served:
        yield served


@pytest.fixture(scope="module")
def shared(api: Api) -> Things:
    """Things that nobody changes."""
    return make_things(api, api.world.user, api.me)


@pytest.fixture(scope="module")
def used(api: Api) -> Things:
    """Things that anybody may change, as long as they stay."""
    return make_things(api, api.world.user, api.me)


@pytest.fixture
def things(api: Api) -> Callable[[], Things]:
    """Makes things that a test may change."""
    return lambda: make_things(api, api.world.user, api.me)


def names(cases: list[Case]) -> list[str]:
    return [case.name for case in cases]


def there() -> set[str]:
    """Every route that there is, bare."""
    return {bare(f"{route.method} {route.path.removeprefix(PREFIX)}") for route in routes()}


def is_there(case: Case) -> bool:
    return bare(case.name) in there()


def refused(response: httpx2.Response, *statuses: int, shape: Any = PROBLEM) -> dict[str, Any]:
    """The problem that a refusal tells, in its one shape."""
    asked = f"{response.request.method} {response.request.url}"
    assert response.status_code in statuses, f"{asked}: {response.status_code} {response.text}"
    problem: dict[str, Any] = response.json()
    fits(problem, shape, asked)
    assert problem["message"]
    assert problem["severity"] == "error"
    return problem


def test_every_route_has_its_case_and_every_case_its_route():
    assert {bare(case.name) for case in CASES} == there()
    assert len(CASES) == len({bare(case.name) for case in CASES})


def test_the_application_publishes_the_routes_of_its_rooms_and_no_others(api: Api):
    published = schema()["paths"]
    assert {(m.upper(), path) for path, methods in published.items() for m in methods} == {
        (route.method, route.path) for route in routes()
    }


@pytest.mark.parametrize("case", CASES, ids=names(CASES))
def test_its_answer_has_exactly_its_fields_and_types(
    case: Case, shared: Things, used: Things, things: Callable[[], Things]
) -> None:
    is_plain = case.method == "GET" and not case.first
    asked = things() if case.method == "DELETE" or case.fresh else shared if is_plain else used
    case.prepare(asked)
    client, ids = asked.me, asked.ids | {"format": "folders"}
    if case.ends_account:
        somebody = new_user(asked.api.deps, f"leaving-{uuid4().hex[:8]}")
        client, ids = asked.api.client(somebody), {"user_id": str(somebody)}
    response = case.ask(client, ids)
    assert response.status_code == case.status, response.text
    assert response.headers["x-content-type-options"] == "nosniff"
    if case.shape is None:
        assert response.content == b""
        return
    if isinstance(case.shape, Raw):
        assert response.headers["content-type"] == case.shape.media_type
        assert response.headers["content-disposition"].startswith("attachment")
        assert response.content
        return
    assert response.headers["content-type"] == "application/json"
    fits(response.json(), case.shape)
    assert holds(response.json(), case.shape), "an empty list shows nothing"


KEYED = [case for case in CASES if not case.is_open]


def test_nobody_comes_in_without_a_key(api: Api, shared: Things, subtests: Any) -> None:
    headers = ("Bearer", "Bearer nope", "Basic dTpw", "nobody:ppw_x", "ppw_x", "")
    strangers = [api.with_header(header) for header in headers]
    nobody = api.with_header(None)
    before = digest(api)
    for number, case in enumerate(filter(is_there, KEYED)):
        with subtests.test(case.name):
            for stranger in (nobody, strangers[number % len(strangers)]):
                response = case.ask(stranger, shared.ids)
                assert refused(response, 401)["field"] == "Authorization"
                assert response.headers["www-authenticate"] == "Bearer"
    assert digest(api) == before


def test_both_forms_of_the_header_open_every_reading_route(
    api: Api, shared: Things, subtests: Any
) -> None:
    key = api.me.headers["authorization"].removeprefix("Bearer ")
    older = api.with_header(f"{username(api, api.world.user)}:{key}")
    somebody = api.with_header(f"{username(api, new_user(api.deps, uuid4().hex))}:{key}")
    for case in filter(is_there, KEYED):
        if case.method == "GET" and not case.first:
            with subtests.test(case.name):
                assert case.ask(older, shared.ids).status_code == case.status
                refused(case.ask(somebody, shared.ids), 401)


def test_a_key_for_the_other_scope_is_refused(api: Api, shared: Things, subtests: Any) -> None:
    reader = api.client(api.world.user, scopes=["read"])
    writer = api.client(api.world.user, scopes=["write"])
    before = digest(api)
    for case in filter(is_there, KEYED):
        client = writer if case.method == "GET" else reader
        with subtests.test(case.name):
            assert "this key is not for" in refused(case.ask(client, shared.ids), 403)["message"]
    assert digest(api) == before


@pytest.mark.parametrize("case", KEYED, ids=names(KEYED))
def test_somebody_else_finds_nothing(case: Case, api: Api, shared: Things) -> None:
    """Somebody else's is as if it were not there: the same answer, and nothing has changed."""
    stranger = api.client(new_user(api.deps, f"stranger-{uuid4().hex[:8]}"))
    nobodys = {part: str(uuid4()) for part in case.parts}
    before = digest(api)
    if not case.parts:
        assert case.is_account
        if case.method == "GET":
            answer = case.ask(stranger, shared.ids).text
            mine = {id_ for name, id_ in shared.ids.items() if not name.startswith("built_in")}
            assert not [id_ for id_ in mine if id_ in answer]
        return
    refused(case.ask(api.me, shared.ids | dict.fromkeys(case.parts, "x")), 404)
    if case.everybodys:
        return
    theirs = refused(case.ask(stranger, shared.ids), 404)
    assert "ppworker " not in theirs["message"], "names a command of the command line"
    missing = refused(case.ask(api.me, shared.ids | nobodys), 404)
    assert missing["field"] == theirs["field"]
    assert without_ids(missing["message"]) == without_ids(theirs["message"])
    assert digest(api) == before


def without_ids(message: str) -> str:
    return re.sub(r"[0-9a-f-]{36}", "ID", message)


def test_each_part_of_a_path_belongs_to_the_one_before(
    api: Api, shared: Things, things: Callable[[], Things], subtests: Any
) -> None:
    """Also where both are the same user's: what is of another dataset is not here."""
    theirs = things()
    before = digest(api)
    for case in filter(is_there, KEYED):
        for part in case.parts if len(case.parts) > 1 else ():
            with subtests.test(f"{case.name}: {part}"):
                if shared.ids[part] == theirs.ids[part]:
                    continue  # built in
                answer = case.ask(api.me, shared.ids | {part: theirs.ids[part]})
                if refused(answer, 404, 422)["field"] not in (case.body or {}):
                    assert answer.status_code == 404
    assert digest(api) == before


JSON = [case for case in CASES if case.method in {"POST", "PUT"} and case.file is None]


@pytest.mark.parametrize("case", JSON, ids=names(JSON))
def test_a_bad_body_is_refused_by_the_name_of_its_field(
    case: Case, api: Api, shared: Things
) -> None:
    path = filled(case.path, shared.ids)

    def ask(content: str, **headers: str) -> httpx2.Response:
        return api.me.request(case.method, path, content=content, headers=headers)

    assert case.bad or case.bodyless, "a route with a body needs a bad one"
    before = digest(api)
    for bad in case.bad:
        answer = case.ask(api.me, shared.ids, bad.body)
        problem = refused(answer, bad.status, shape=case.problem)
        assert problem["field"] == bad.field
    if not case.bodyless:
        refused(ask('{"name": '), 400, shape=case.problem)
        refused(ask("[1]"), 422, shape=case.problem)
        refused(ask('"text"'), 422, shape=case.problem)
        plain = ask("{}", **{"content-type": "text/plain"})
        assert "JSON" in refused(plain, 400, 422, shape=case.problem)["message"]
    assert digest(api) == before


FILES = [case for case in CASES if case.file is not None]


@pytest.mark.parametrize("case", FILES, ids=names(FILES))
def test_a_body_without_a_file_is_refused(case: Case, api: Api, shared: Things) -> None:
    path = filled(case.path, shared.ids | {"format": "folders"})
    before = digest(api)
    wrong = api.me.post(path, files={"picture": ("a.txt", b"a", "text/plain")})
    assert refused(wrong, 400, 422)["field"] == "file"
    assert refused(api.me.post(path, content="{}"), 400, 422)["field"] == "file"
    assert refused(api.me.post(path), 400, 422)["field"] == "file"
    assert digest(api) == before


def test_a_bad_value_in_a_query_is_refused_by_its_name(
    api: Api, shared: Things, subtests: Any
) -> None:
    published = schema()["paths"]
    by_name = {bare(case.name): case for case in CASES}
    asked = 0
    for path, methods in published.items():
        for method, operation in methods.items():
            case = by_name.get(bare(f"{method.upper()} {path.removeprefix(PREFIX)}"))
            for about in operation.get("parameters", []):
                if case is None or about["in"] != "query" or not is_choosy(about["schema"]):
                    continue
                asked += 1
                with subtests.test(f"{case.name}: {about['name']}"):
                    url = filled(case.path, shared.ids)
                    query = filled(case.query, shared.ids)
                    wrong = query | {about["name"]: "wrong"}
                    response = api.me.request(case.method, url, params=wrong)
                    assert refused(response, 400)["field"] == about["name"]
                    twice = [*query.items(), *[(about["name"], "1")] * 2]
                    response = api.me.request(case.method, url, params=twice)
                    assert refused(response, 400)["field"] == about["name"]
                    absent = query | {about["name"]: ""}
                    empty = api.me.request(case.method, url, params=absent)
                    assert empty.is_success, "an empty value counts as absent"
    assert asked


def is_choosy(schema: dict[str, Any]) -> bool:
    """Whether a parameter takes no text at will."""
    kinds = [schema, *schema.get("anyOf", [])]
    return any(
        kind.get("type") in {"integer", "number", "boolean"} or "enum" in kind or "$ref" in kind
        for kind in kinds
    )


def test_a_wrong_method_is_told_the_right_ones(api: Api, shared: Things, subtests: Any) -> None:
    known: dict[str, set[str]] = {}
    for route in routes():
        known.setdefault(bare(route.path.removeprefix(PREFIX)), set()).add(route.method)
    before = digest(api)
    for case in {bare(case.path): case for case in filter(is_there, CASES)}.values():
        allowed = known[bare(case.path)]
        url = filled(case.path, shared.ids)
        for method in {"GET", "PUT", "POST", "DELETE", "PATCH"} - allowed:
            with subtests.test(f"{method} {case.path}"):
                response = api.me.request(method, url)
                refused(response, 405)
                assert set(response.headers["allow"].split(", ")) == allowed
    assert digest(api) == before


def test_what_is_no_route_is_no_secret(api: Api) -> None:
    for path in ("/nothing", "/datasets/", "/datasets//versions"):
        assert refused(api.me.get(path), 404)["message"] == "there is no such route"
