"""Two users who ask at random, with ids of their own and of each other in every place that takes one.

Neither ever sees anything of the other's, nor changes it.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from api_cases import CASES, Case, bare
from api_server import Api, new_user
from api_things import Things, filled, make_things, owned_by, rows, served_world
from ppworker.api.app import PREFIX, routes
from ppworker.pipeline.deps import Deps

pytestmark = pytest.mark.xdist_group("api-strangers")

STEPS = 15
IS_THOROUGH = os.environ.get("PPWORKER_TEST_PROFILE") == "thorough"
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
THERE = {bare(f"{route.method} {route.path.removeprefix(PREFIX)}") for route in routes()}
ASKED = [case for case in CASES if not case.is_open and bare(case.name) in THERE]
REFERENCES = {
    "splitId": "split_id", "labelId": "label_id", "split_id": "split_id", "label_id": "label_id",
    "item_id": "item_id", "post_processor_id": "post_processor_id", "operation_id": "operation_id",
    "modelVersionIds": "model_version_id", "version_id": "version_id",
}  # fmt: skip
"""What values of a query string may name."""


class Pair:
    """Two users on one server, and what each has."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.users = [new_user(api.deps, f"user-{uuid4().hex[:8]}") for _ in range(2)]
        self.clients = [api.client(user) for user in self.users]
        self.things = [self._make(side) for side in (0, 1)]
        self.cursors = ["", ""]

    def _make(self, side: int) -> Things:
        return make_things(self.api, self.users[side], self.clients[side])

    def refill(self, side: int) -> None:
        """Make things anew where they are gone."""
        things = self.things[side]
        path = things.fill("/datasets/{dataset_id}/versions/{version_id}/items/{item_id}")
        if self.clients[side].get(path).status_code == 404:
            self.things[side] = self._make(side)


@pytest.fixture(scope="module")
def pair(module_deps: Deps) -> Iterator[Pair]:
    with served_world(module_deps) as api:
        yield Pair(api)


SIDES = st.integers(0, 1)
STEP = st.tuples(
    SIDES,
    st.sampled_from(ASKED),
    st.dictionaries(st.sampled_from(sorted({p for case in ASKED for p in case.parts})), SIDES),
    st.integers(0, 1),
    st.dictionaries(st.sampled_from(sorted(REFERENCES)), SIDES, max_size=2),
)
"""Who asks what; whose id stands in each part of the path, in the body and in the query."""


@settings(
    max_examples=500 if IS_THOROUGH else 20,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],  # what was asked has changed the world: no shrinking
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=st.lists(STEP, min_size=STEPS, max_size=STEPS))
def test_neither_sees_nor_changes_anything_of_the_other(pair: Pair, steps: list[Any]) -> None:
    for side in (0, 1):
        pair.refill(side)
    before = [owned_by(rows(pair.api), str(user)) for user in pair.users]
    for me, case, parts, body_side, query in steps:
        other = 1 - me
        response, sent = ask(pair, me, case, parts, body_side, query)
        assert response.status_code < 500, f"{case.name}: {response.text}"
        said = response.text + "".join(f"\n{k}: {v}" for k, v in response.headers.items())
        theirs = pair.things[other]
        assert not [mark for mark in theirs.marks if mark in said], f"{case.name}: {said}"
        only_theirs = set(theirs.ids.values()) - set(pair.things[me].ids.values())
        strange = (set(UUID.findall(said)) & only_theirs) - sent
        assert not strange, f"{case.name} tells {strange}: {said}"
        everything = rows(pair.api)
        assert owned_by(everything, str(pair.users[other])) == before[other], (
            f"{case.name} as somebody else changed: "
            f"{owned_by(everything, str(pair.users[other])) ^ before[other]}"
        )
        before[me] = owned_by(everything, str(pair.users[me]))


def ask(
    pair: Pair, me: int, case: Case, parts: Mapping[str, int], body_side: int,
    query: Mapping[str, int],
) -> tuple[Any, set[str]]:  # fmt: skip
    """An answer, and the ids that were sent for it."""
    own, others = pair.things[me].ids, pair.things[1 - me].ids
    path = own | {part: others[part] for part, side in parts.items() if side}
    if case.method == "DELETE" and case.parts and all(path[p] == own[p] for p in case.parts):
        path |= {case.parts[-1]: others[case.parts[-1]]}
    if case.ends_account:
        path |= {"user_id": others["user_id"]}  # nobody ends the account that asks
    body = (others if body_side else own) | {"mark": own["mark"]}
    asked: dict[str, Any] = {"params": filled(case.query, own)}
    asked["params"] |= {
        name: (others if side else own)[REFERENCES[name]]
        for name, side in query.items()
        if case.method == "GET"
    }
    if case.file is not None:
        asked["files"] = {"file": case.file}
    elif case.lines:
        asked["content"] = "\n".join(json.dumps(line) for line in filled(case.body, body))
        asked["headers"] = {"Content-Type": "application/x-ndjson"}
    elif case.body is not None:
        asked["json"] = filled(case.body, body)
    url = filled(case.path, path | {"format": "folders"})
    response = pair.clients[me].request(case.method, url, **asked)
    return response, set(UUID.findall(f"{url} {asked}"))
