"""Long work in chunks: leased, fenced, resumable, given back, and ended when it is hopeless."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa

from factories import World
from ppworker.domain.events import OperationAdvanced, OperationMoved
from ppworker.domain.job import Attempt, Outcome, decide
from ppworker.errors import CommitUnknown, Conflict, NotFound, StoreRefused, StoreUnavailable
from ppworker.pipeline.control import operations, pace
from ppworker.pipeline.control.operations import Chunk, Write
from ppworker.pipeline.deps import Deps
from ppworker.store import operations as store
from ppworker.store.db import Database, Tx
from ppworker.store.ids import new_id
from ppworker.store.operations import Operation
from ppworker.worker.operations import OperationThread

KIND = "count"


@dataclass
class Counting:
    """A kind of operation that writes each number below its total once, as a label's name."""

    world: World
    most: int = 10
    """Numbers of a chunk."""
    prepared: Callable[[Operation], object] = lambda _: None
    """Called outside the transaction."""
    written: Callable[[Operation], object] = lambda _: None
    """Called inside it, after the writes."""
    chunks: list[int] = field(default_factory=list)
    """How many numbers each chunk was to write."""
    told: list[int] = field(default_factory=list)
    """Cursors of chunks whose COMMIT was told of."""

    @property
    def steps(self) -> dict[str, operations.Step]:
        return {KIND: self.step}

    def step(self, _deps: Deps, operation: Operation) -> Write:
        self.prepared(operation)
        end = min(operation.cursor + min(operation.chunk, self.most), operation.total or 0)
        self.chunks.append(end - operation.cursor)

        def write(tx: Tx) -> Chunk:
            for number in range(operation.cursor, end):
                tx.execute(
                    sa.text("INSERT INTO users (id, username) VALUES (gen_random_uuid(), :name)"),
                    {"name": f"number {number}"},
                )
            self.written(operation)
            return Chunk(
                cursor=end,
                done=end - operation.cursor,
                counts={"numbers": end - operation.cursor},
                is_last=end == operation.total,
                after=lambda: self.told.append(end),
            )

        return write

    def begin(self, total: int = 50) -> UUID:
        id_ = new_id()
        with self.world.deps.db.begin() as tx:
            store.insert_operation(
                tx, id_, self.world.user, kind=KIND, arguments={}, dataset_id=None, total=total
            )
        return id_

    def run(self, **options) -> Operation:
        done = operations.run(options.pop("deps", self.world.deps), self.steps, **options)
        assert done is not None
        return done

    def numbers(self) -> list[int]:
        rows = self.world.sql("SELECT username FROM users WHERE username LIKE 'number %'")
        return sorted(int(row.username.split()[1]) for row in rows)


@pytest.fixture
def counting(world: World) -> Counting:
    return Counting(world)


def make_due(world: World) -> None:
    world.sql("UPDATE operations SET run_at = now() WHERE status = 'pending'")


def expire(world: World) -> None:
    """Let every lease run out now."""
    world.sql(
        "UPDATE operations SET lease_expires_at = clock_timestamp() - interval '1 s' "
        "WHERE status = 'processing'"
    )


def after_chunks(count: int) -> Callable[[], bool]:
    """True once so many chunks are done: it is asked before the claim and before each chunk."""
    answers = iter([False] * (count + 1))
    return lambda: next(answers, True)


def read(world: World, id_: UUID) -> Operation:
    with world.deps.db.begin() as tx:
        found = store.find_operation(tx, world.user, id_)
    assert found is not None
    return found


def test_chunks_their_place_and_their_counts_commit_together(world, counting, events):
    id_ = counting.begin(25)
    done = counting.run()
    assert (done.id, done.status, done.cursor, done.done) == (id_, "completed", 25, 25)
    assert done.counts == {"numbers": 25}
    assert counting.numbers() == list(range(25))
    assert counting.told == [10, 20, 25]
    assert [e.done for e in events if isinstance(e, OperationAdvanced)] == [10, 10, 5]
    assert [e.cause for e in events if isinstance(e, OperationMoved)] == ["claimed", "finished"]
    assert read(world, id_) == done
    assert operations.run(world.deps, counting.steps) is None, "nothing is left to claim"


def test_kinds_that_are_unknown_here_are_left_to_others(world, counting):
    counting.begin()
    assert operations.run(world.deps, {"another": counting.step}) is None


@pytest.mark.parametrize("when", ["prepared", "between the two"])
def test_a_lease_that_is_lost_on_the_way_writes_nothing(world, counting, when):
    id_ = counting.begin()
    thief = Counting(world)
    stolen: list[Operation] = []

    def steal(operation: Operation) -> None:
        if operation.cursor == 20 and not stolen:
            expire(world)
            stolen.append(thief.run(until=after_chunks(1)))

    if when == "prepared":
        counting.prepared = steal
        counting.run()
        assert counting.told == [10, 20], "the third chunk was dropped"
        assert (stolen[0].cursor, stolen[0].status) == (30, "pending")
    else:
        first = counting.run(until=after_chunks(1))
        with world.deps.db.begin() as tx:
            zombie = store.claim(tx, [KIND], worker_id=uuid4(), lease_s=30)
        assert zombie is not None
        assert zombie.lease_token == first.lease_token + 1
        expire(world)
        thief.run()
        with world.deps.db.begin() as tx:
            assert store.hold(tx, id_, zombie.lease_token) is None
    operations.follow(world.deps, thief.steps, world.user, id_)
    assert counting.numbers() == list(range(50)), "each number once"
    assert read(world, id_).counts == {"numbers": 50}


def test_who_lost_the_lease_to_one_who_still_works_drops_the_chunk_and_says_why(
    world, counting, caplog
):
    counting.begin()
    held: list[Operation] = []

    def lose(operation: Operation) -> None:
        held.append(operation)
        expire(world)
        with world.deps.db.begin() as tx:
            assert store.claim(tx, [KIND], worker_id=uuid4(), lease_s=30)

    counting.prepared = lose
    left = counting.run()
    assert (left.status, left.lease_token, left.attempts, left.done) == ("processing", 2, 2, 0)
    released = decide(Attempt(attempts=1, max_attempts=5), Outcome(kind="released"), jitter=0)
    with world.deps.db.begin() as tx:
        assert store.move(tx, held[0], released) is None, "fenced even without the lock"
    assert counting.numbers() == []
    assert [record.levelname for record in caplog.records] == ["WARNING"], caplog.text


def test_a_chunk_holds_the_operation_against_a_claim_even_when_its_lease_runs_out(world, counting):
    counting.begin(10)
    tried: list[Operation | None] = []

    def try_to_claim(_: Operation) -> None:
        with world.deps.db.begin() as tx:
            tried.append(store.claim(tx, [KIND], worker_id=uuid4(), lease_s=30))

    counting.prepared = lambda _: expire(world)
    counting.written = try_to_claim
    assert counting.run().status == "completed"
    assert tried == [None]


def test_a_dead_runners_operation_goes_on_where_its_last_commit_was(world, counting):
    id_ = counting.begin()
    counting.run(until=after_chunks(2))
    with world.deps.db.begin() as tx:
        store.claim(tx, [KIND], worker_id=uuid4(), lease_s=30)
    assert operations.run(world.deps, counting.steps) is None, "its lease still holds"
    expire(world)
    done = counting.run()
    assert (done.status, done.counts) == ("completed", {"numbers": 50})
    assert counting.numbers() == list(range(50))
    assert read(world, id_).lease_token == 3


def test_a_stop_gives_it_back_and_costs_no_attempt(world, counting, events):
    id_ = counting.begin()
    for expected in (10, 20, 30):
        given_back = counting.run(until=after_chunks(1))
        assert (given_back.status, given_back.cursor) == ("pending", expected)
        assert (given_back.attempts, given_back.reason) == (0, "")
    assert [e.cause for e in events if isinstance(e, OperationMoved)] == ["claimed", "released"] * 3
    assert operations.run(world.deps, counting.steps, until=lambda: True) is None
    assert read(world, id_).lease_token == 3


def test_an_interrupted_command_gives_it_back(world, counting):
    id_ = counting.begin()

    def interrupt(operation: Operation) -> None:
        if operation.cursor == 20:
            raise KeyboardInterrupt

    counting.written = interrupt
    with pytest.raises(KeyboardInterrupt):
        counting.run()
    found = read(world, id_)
    assert (found.status, found.cursor, found.attempts) == ("pending", 20, 0)
    assert counting.numbers() == list(range(20))


def test_a_chunk_that_always_fails_ends_it_with_its_reason_and_what_was_before_is_done(
    world, counting, events
):
    counting.most = 1_000

    def refuse(operation: Operation) -> None:
        if operation.cursor <= 37 < operation.cursor + min(operation.chunk, 50 - operation.cursor):
            raise StoreRefused("number 37 is poison")

    id_ = counting.begin()
    counting.written = refuse
    states = []
    while not (state := counting.run()).is_over:
        states.append(state)
        assert (state.status, state.reason) == ("pending", "refused_data")
        waits = world.sql("SELECT run_at > clock_timestamp() FROM operations")
        assert waits == [(True,)], "it is tried again after a while"
        assert operations.run(world.deps, counting.steps) is None
        make_due(world)
        assert len(states) < 30
    assert (state.status, state.reason) == ("failed", "refused_data")
    assert "37" in state.error
    assert counting.numbers() == list(range(state.done)) == list(range(37))
    causes = [e.cause for e in events if isinstance(e, OperationMoved)]
    assert causes[-1] == "exhausted"
    assert max(s.attempts for s in states) == state.max_attempts - 1

    counting.written = lambda _: None
    retried = operations.retry(world.deps, world.user, id_)
    assert (retried.status, retried.attempts, retried.error) == ("pending", 0, "")
    done = counting.run()
    assert (done.status, done.counts) == ("completed", {"numbers": 50})
    assert counting.numbers() == list(range(50))
    with pytest.raises(Conflict):
        operations.retry(world.deps, world.user, id_)


def test_a_bug_in_a_step_is_tried_again_too_and_named(world, counting):
    counting.begin()

    def stumble(_: Operation) -> None:
        raise ZeroDivisionError("a bug")

    counting.prepared = stumble
    found = counting.run()
    assert (found.status, found.reason) == ("pending", "step_failed")
    assert found.error == "ZeroDivisionError: a bug"


def test_an_error_of_the_machine_names_no_path_of_it(world, counting):
    def lost_file(_: Operation) -> None:
        raise FileNotFoundError(2, "No such file or directory", "/srv/secret/blobs/ab/abcd")

    counting.begin()
    counting.prepared = lost_file
    failed = counting.run()
    assert (failed.status, failed.reason) == ("pending", "step_failed")
    assert failed.error == "FileNotFoundError: No such file or directory"


def test_what_no_repetition_mends_ends_it_at_once(world, counting):
    counting.begin()

    def gone(operation: Operation) -> None:
        if operation.cursor == 20:
            raise NotFound("the split is gone")

    counting.prepared = gone
    found = counting.run()
    assert (found.status, found.reason, found.error) == ("failed", "not_found", "the split is gone")
    assert (found.done, found.attempts) == (20, 1)


def test_one_that_kills_whoever_runs_it_ends_as_failed(world, counting, events):
    id_ = counting.begin()
    counting.run(until=after_chunks(1))
    for _ in range(5):
        with world.deps.db.begin() as tx:
            assert store.claim(tx, [KIND], worker_id=uuid4(), lease_s=30) is not None
        expire(world)
    assert operations.run(world.deps, counting.steps) is None
    found = read(world, id_)
    assert (found.status, found.reason, found.attempts) == ("failed", "lease_expired", 5)
    assert [e.cause for e in events if isinstance(e, OperationMoved)][-1] == "exhausted"
    assert found.done == 10


def test_whose_attempts_are_used_up_is_not_claimed_even_before_it_is_ended(world, counting):
    counting.begin()
    with world.deps.db.begin() as tx:
        assert store.claim(tx, [KIND], worker_id=uuid4(), lease_s=30)
    world.sql("UPDATE operations SET attempts = max_attempts")
    expire(world)
    with world.deps.db.begin() as tx:
        assert store.claim(tx, [KIND], worker_id=uuid4(), lease_s=30) is None
        assert [ended.reason for ended in store.fail_exhausted(tx, [KIND])] == ["lease_expired"]


def test_progress_makes_the_attempts_begin_anew(world, counting):
    counting.begin(100)
    for round_ in range(8):
        with world.deps.db.begin() as tx:
            claimed = store.claim(tx, [KIND], worker_id=uuid4(), lease_s=30)
        assert claimed is not None, f"round {round_}"
        expire(world)
        found = counting.run(until=after_chunks(1))
        assert (found.status, found.attempts) == ("pending", 0)


def test_two_runners_at_once_share_operations_and_double_nothing(world):
    kinds = [Counting(world, most=3) for _ in range(2)]
    id_ = kinds[0].begin(40)
    failures: list[BaseException] = []

    def work(mine: Counting) -> None:
        try:
            ends = time.monotonic() + 20
            while time.monotonic() < ends and not read(world, id_).is_over:
                operations.run(world.deps, mine.steps, until=after_chunks(1))
        except BaseException as error:  # noqa: BLE001  shown in the main thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(mine,)) for mine in kinds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == []
    assert kinds[0].numbers() == list(range(40))
    assert sorted(kinds[0].told + kinds[1].told) == [*range(3, 40, 3), 40]
    assert read(world, id_).counts == {"numbers": 40}


def test_operations_take_turns_when_they_are_given_back(world, counting):
    ids = [counting.begin(0), counting.begin(0), counting.begin(0)]
    turns = []
    for _ in range(3):
        found = counting.run(until=after_chunks(0))
        turns.append(found.id)
    assert turns == ids


class _Undone(Exception):  # noqa: N818
    pass


class _CutAtCommit(Database):
    """A database whose link is cut at a COMMIT: before it arrives, while it is under way, or when
    it has been applied."""

    def __init__(self, inner: Database, then: Callable[[], None] = lambda: None) -> None:
        self.__dict__ |= inner.__dict__
        self.cut: str | None = None
        self.then = then
        """Called once it has been applied, before anybody is told."""

    @contextmanager
    def _late(self) -> Iterator[Tx]:
        connection = self.engine.connect()
        transaction = connection.begin()
        yield connection

        def arrive() -> None:
            transaction.commit()
            connection.close()

        threading.Timer(0.5, arrive).start()

    @contextmanager
    def begin(self, *, limit_s: float | None = None) -> Iterator[Tx]:
        cut, self.cut = self.cut, None
        if cut == "under way":
            with self._late() as tx:
                yield tx
            raise CommitUnknown("cut while COMMIT was under way")
        try:
            with super().begin() as tx:
                yield tx
                if cut == "lost":
                    raise _Undone  # noqa: TRY301  stands for a server that never saw the COMMIT
        except _Undone:
            raise CommitUnknown("cut before COMMIT arrived") from None
        if cut == "applied":
            self.then()
            raise CommitUnknown("cut after COMMIT was applied")


@pytest.mark.parametrize("how", ["applied", "under way", "lost"])
@pytest.mark.parametrize("at", [20, 40])
def test_a_commit_whose_answer_was_lost_is_decided_right(world, counting, monkeypatch, how, at):
    monkeypatch.setattr(pace, "CHUNK_S", 30.0)  # the wait makes no chunk smaller
    cutting = _CutAtCommit(world.deps.db)
    id_ = counting.begin()

    def cut(operation: Operation) -> None:
        if operation.cursor == at and at not in cut_at:
            cut_at.append(at)
            cutting.cut = how

    cut_at: list[int] = []
    counting.prepared = cut
    done = counting.run(deps=replace(world.deps, db=cutting))
    assert cut_at == [at]
    assert (done.status, done.counts, done.lease_token) == ("completed", {"numbers": 50}, 1)
    assert counting.numbers() == list(range(50))
    assert counting.told == [10, 20, 30, 40, 50], "each chunk is told of once"
    assert read(world, id_) == done


@pytest.mark.parametrize("how", ["applied", "under way", "lost"])
def test_an_operation_whose_turn_ended_with_a_lost_commit_waits_for_no_lease(world, counting, how):
    """Who runs it does not wait for the database then: its turn is over."""
    cutting = _CutAtCommit(world.deps.db)
    id_ = counting.begin()

    def cut(operation: Operation) -> None:
        if operation.cursor == 20:
            cutting.cut = how
            cut_at.append(20)

    cut_at: list[int] = []
    counting.prepared = cut
    with pytest.raises(CommitUnknown):
        counting.run(deps=replace(world.deps, db=cutting), until=lambda: bool(cut_at))
    left = read(world, id_)
    assert (left.status, left.attempts) == ("pending", 0)
    counting.prepared = lambda _: None
    assert counting.run().status == "completed"
    assert counting.numbers() == list(range(50))


def test_a_commit_whose_answer_was_lost_is_not_followed_by_more_of_an_operation_lost_since(
    world, counting
):
    def steal() -> None:
        expire(world)
        with world.deps.db.begin() as tx:
            assert store.claim(tx, [KIND], worker_id=uuid4(), lease_s=30)

    def cut(operation: Operation) -> None:
        if operation.cursor == 20:
            cutting.cut = "applied"

    cutting = _CutAtCommit(world.deps.db, steal)
    id_ = counting.begin()
    counting.prepared = cut
    left = counting.run(deps=replace(world.deps, db=cutting))
    assert (left.status, left.lease_token, left.done) == ("processing", 2, 30)
    assert counting.chunks == [10, 10, 10], "whoever has it now does the rest"
    expire(world)
    operations.follow(world.deps, counting.steps, world.user, id_)
    assert counting.numbers() == list(range(50))


def test_each_chunk_renews_the_lease(world, counting):
    def shorten(_: Operation) -> None:
        world.sql("UPDATE operations SET lease_expires_at = clock_timestamp() + interval '5 s'")

    counting.begin()
    counting.prepared = shorten
    remaining: list[float] = []

    def look(_: Operation) -> None:
        ((left_s,),) = world.sql(
            "SELECT extract(epoch FROM lease_expires_at - clock_timestamp()) FROM operations "
            "WHERE status = 'processing' UNION ALL SELECT 30 LIMIT 1"
        )
        remaining.append(float(left_s))

    counting.run(watch=look)
    assert len(remaining) == 5
    assert min(remaining) > world.deps.settings.lease_s - 5


def test_while_postgresql_is_away_it_waits_and_a_stop_ends_the_wait(world, counting):
    id_ = counting.begin()
    away: list[bool] = [False]

    def vanish(operation: Operation) -> None:
        if operation.cursor == 20:
            away[0] = True
            raise StoreUnavailable("away")

    counting.prepared = vanish
    with pytest.raises(StoreUnavailable):
        counting.run(until=lambda: away[0])
    left = read(world, id_)
    assert (left.status, left.cursor, left.attempts) == ("pending", 20, 0), "given back, once it is"

    def come_back(operation: Operation) -> None:
        if operation.cursor == 20 and away.pop():
            raise StoreUnavailable("away")

    away[:] = [False, True]
    counting.prepared = come_back
    assert counting.run().status == "completed"
    assert counting.numbers() == list(range(50))


def test_following_runs_it_or_waits_for_whoever_does_and_is_told_of_progress(world, counting):
    id_ = counting.begin()
    seen: list[tuple[str, int]] = []
    done = operations.follow(
        world.deps, counting.steps, world.user, id_,
        watch=lambda o: seen.append((o.status, o.done)),
    )  # fmt: skip
    assert done.status == "completed"
    assert seen[0] == ("pending", 0)
    assert ("processing", 20) in seen
    assert seen[-1] == ("completed", 50)
    with pytest.raises(NotFound):
        operations.follow(world.deps, counting.steps, uuid4(), id_)

    other = counting.begin(0)
    with world.deps.db.begin() as tx:
        claimed = store.claim(tx, [KIND], worker_id=uuid4(), lease_s=30)
    assert claimed is not None
    asked: list[Operation] = []
    waited = operations.follow(
        world.deps, counting.steps, world.user, other,
        until=lambda: len(asked) > 2, watch=asked.append,
    )  # fmt: skip
    assert waited.status == "processing"


def test_others_do_not_see_it(world, worlds, counting):
    id_ = counting.begin()
    stranger = worlds()
    with world.deps.db.begin() as tx:
        assert store.find_operation(tx, stranger.user, id_) is None
        assert store.list_operations(tx, stranger.user, limit=10) == []
        assert store.retry_failed(tx, stranger.user, id_) is None
        second = counting.begin()
    with world.deps.db.begin() as tx:
        listed = store.list_operations(tx, world.user, limit=10)
        assert [each.id for each in listed] == [second, id_]
        behind = store.list_operations(tx, world.user, limit=10, status="pending", after=second)
        assert [each.id for each in behind] == [id_]


def test_a_retry_is_its_owners_and_waits_behind_what_is_due(world, worlds, counting):
    def forbid(_: Operation) -> None:
        raise NotFound("it is gone", field="it")

    counting.prepared = forbid
    failed = counting.run(operation_id=counting.begin())
    counting.prepared = lambda _: None
    second = counting.begin()
    with pytest.raises(NotFound):
        operations.retry(world.deps, worlds().user, failed.id)
    assert read(world, failed.id).status == "failed"
    operations.retry(world.deps, world.user, failed.id)
    assert [counting.run(until=after_chunks(1)).id for _ in range(2)] == [second, failed.id]


def test_chunks_grow_while_they_are_quick_and_shrink_when_they_are_slow(world, counting):
    counting.most = 10_000
    counting.begin(1_000)
    counting.run()
    quick = counting.chunks.copy()
    assert quick[0] == store.FIRST_CHUNK
    assert quick[1] > quick[0]
    counting.chunks.clear()
    world.sql("DELETE FROM users WHERE username LIKE 'number %'")
    counting.begin(200)
    short = replace(world.deps, settings=world.deps.settings.model_copy(update={"lease_s": 1.0}))
    counting.prepared = lambda operation: time.sleep(0.004 * min(operation.chunk, 200))
    counting.run(deps=short)
    assert counting.chunks[1] < counting.chunks[0], "a sixth of a lease, not half of it"


class TestTheThreadOfAWorker:
    def test_it_finds_work_and_stops_between_chunks(self, world, counting):
        stopping, looked = threading.Event(), threading.Event()

        def run_one(until: Callable[[], bool]) -> bool:
            found = operations.run(world.deps, counting.steps, until=until)
            if found is None:
                looked.set()
            return found is not None

        thread = OperationThread(run_one, poll_s=0.05, slice_s=60, stopping=stopping)
        thread.start()
        assert looked.wait(10), "it looks at once"
        first = counting.begin(20)
        until = time.monotonic() + 10
        while not read(world, first).is_over:
            assert time.monotonic() < until, "it polls"
            time.sleep(0.01)
        world.sql("DELETE FROM users WHERE username LIKE 'number %'")
        begun = threading.Event()

        def slowly(_: Operation) -> None:
            begun.set()
            time.sleep(0.01)

        counting.prepared = slowly
        second = counting.begin(100_000)
        assert begun.wait(10)
        thread.stop()
        found = read(world, second)
        assert (found.status, found.attempts) == ("pending", 0)
        assert found.done == len(counting.numbers()) > 0

    def test_a_bug_or_an_absent_database_does_not_end_it(self):
        calls, enough = [], threading.Event()

        def run_one(_: Callable[[], bool]) -> bool:
            calls.append(1)
            if len(calls) == 1:
                raise StoreUnavailable("away")
            if len(calls) == 2:
                raise ZeroDivisionError
            enough.set()
            return False

        thread = OperationThread(run_one, poll_s=0.01, slice_s=1, stopping=threading.Event())
        thread.start()
        assert enough.wait(10)
        thread.stop()

    def test_its_slice_ends_so_that_others_have_their_turn(self):
        asked, enough = [], threading.Event()

        def run_one(until: Callable[[], bool]) -> bool:
            ends = time.monotonic() + 10
            while not until() and time.monotonic() < ends:
                time.sleep(0.005)
            asked.append(until())
            if len(asked) == 2:
                enough.set()
            return True

        thread = OperationThread(run_one, poll_s=60, slice_s=0.05, stopping=threading.Event())
        thread.start()
        assert enough.wait(10)
        thread.stop()
        assert asked[:2] == [True, True]
