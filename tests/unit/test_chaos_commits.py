"""Which COMMITs the scenario of unknown COMMITs cuts, and how."""

from collections import Counter

from ppworker.chaos.commits import Cut
from ppworker.chaos.scenarios.commit_unknown import Cutter, kind_of
from ppworker.store import claims

FINISH = ("SELECT 1", "INSERT INTO job_results (a) VALUES (1)", "INSERT INTO job_attempts SELECT")


def test_transactions_are_known_by_what_they_write() -> None:
    assert kind_of(FINISH) == "finish"
    assert kind_of(["INSERT INTO job_attempts SELECT"]) is None, "a rescue has no result"
    assert kind_of(['UPDATE operations o SET "cursor" = $1']) == "operation"
    assert kind_of(["INSERT INTO idempotency_keys (key) VALUES ($1)"]) == "upload"
    assert kind_of([]) is None


def test_the_claim_is_known_by_its_own_statement() -> None:
    """The scenario would cut no claim if that statement were written otherwise."""
    texts = [getattr(value, "text", "") for value in vars(claims).values()]
    statements = [text for text in texts if isinstance(text, str)]
    assert any(kind_of([text]) == "claim" for text in statements)


def test_half_of_the_cuts_are_before_anything_is_written_and_they_end_at_their_number() -> None:
    cutter = Cutter({"finish": 8})
    made = Counter(cutter(FINISH) for _ in range(100))
    assert made == {None: 92, Cut.BEFORE: 4, Cut.AFTER: 2, Cut.LATE: 2}
    assert cutter.left == {}
    assert cutter.of("finish") == {"before": 4, "after": 2, "late": 2}


def test_other_transactions_are_left_alone() -> None:
    cutter = Cutter({"finish": 8})
    assert {cutter(["SELECT 1"]) for _ in range(20)} == {None}
    assert cutter.left == {"finish": 8}
