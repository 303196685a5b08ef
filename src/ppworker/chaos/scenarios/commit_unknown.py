"""The link to PostgreSQL is lost while a COMMIT is under way: it was written, or not (F12)."""

import threading
from collections import Counter
from collections.abc import Mapping, Sequence

from ppworker.chaos import load, measure
from ppworker.chaos.cluster import Cluster
from ppworker.chaos.commits import Cut
from ppworker.chaos.load import Load
from ppworker.chaos.programs import wait_for
from ppworker.chaos.proxy import Proxy, address_of, through
from ppworker.chaos.scenario import Measured, Run, Scenario, add
from ppworker.chaos.uploads import Uploader
from ppworker.pipeline.control import reapply
from ppworker.store.results import Scope

_JOBS = 6_000
_BATCH = 8
"""Small, so that there are many COMMITs."""
_REAPPLIES = 12
_UPLOADS = 60
_ITEMS = 3
_CUTS = {"finish": 200, "claim": 200, "operation": 60, "upload": 40, "labels": 6, "stats": 40}
_EVERY = {"finish": 3, "claim": 3, "operation": 2, "upload": 2, "labels": 1, "stats": 2}
_TURNS = (Cut.BEFORE, Cut.AFTER, Cut.BEFORE, Cut.LATE)
_PATIENCE_S = 600.0

# What a transaction is, by what one of its statements says; the first that fits counts.
_KINDS: Mapping[str, Sequence[str]] = {
    "finish": ("INSERT INTO job_attempts", "INSERT INTO job_results"),
    "claim": ("SET\n  status = 'processing', attempts = j.attempts + 1",),
    "operation": ('UPDATE operations o SET "cursor"',),
    "upload": ("INSERT INTO idempotency_keys",),
    "labels": ("INSERT INTO labels",),
    "stats": ("DELETE FROM label_stat_deltas",),
}


class Cutter:
    """Cuts of each kind of transaction every second or third COMMIT, as often as wanted.

    Half of them before anything is written, the others when all is, by turns.

    Args:
        wanted: how many of each kind.
    """

    def __init__(self, wanted: Mapping[str, int]) -> None:
        self.cut: Counter[tuple[str, Cut]] = Counter()
        self._seen: Counter[str] = Counter()
        self._left = dict(wanted)
        self._lock = threading.Lock()

    def __call__(self, statements: Sequence[str]) -> Cut | None:
        """What becomes of this COMMIT."""
        kind = kind_of(statements)
        if kind is None:
            return None
        with self._lock:
            self._seen[kind] += 1
            if self._seen[kind] % _EVERY[kind] or not self._left.get(kind):
                return None
            self._left[kind] -= 1
            cut = _TURNS[self._left[kind] % len(_TURNS)]
            self.cut[kind, cut] += 1
            return cut

    @property
    def left(self) -> dict[str, int]:
        """Cuts that are still to be made, by kind."""
        return {kind: number for kind, number in self._left.items() if number}

    def of(self, kind: str) -> dict[str, int]:
        """Cuts made, by kind of cut."""
        return {str(cut): self.cut[kind, cut] for cut in Cut}


def kind_of(statements: Sequence[str]) -> str | None:
    """What a transaction with these statements does, if that is known."""
    for kind, words in _KINDS.items():
        if all(any(word in text for text in statements) for word in words):
            return kind
    return None


def _once(run: Run) -> Measured:
    wanted = {kind: run.times(number, least=2) for kind, number in _CUTS.items()}
    cutter = Cutter(wanted)
    with (
        run.cluster() as cluster,
        Proxy(address_of(cluster.database_url), choose=cutter) as proxy,
    ):
        url = through(cluster.database_url, proxy.port)
        workers = cluster.start_workers(PPWORKER_DATABASE_URL=url)
        api = cluster.start_api(PPWORKER_DATABASE_URL=url)
        # Rare slow jobs: this is about COMMITs, not about waiting for models.
        chaos = load.make(cluster, batch_size=_BATCH, slow_share=0.0)
        uploads = run.times(_UPLOADS, least=6)
        with run.phase("fault"):
            jobs = len(chaos.add(run.times(_JOBS, least=300)))
            repeats = _upload(Uploader(api, chaos), uploads)
            cluster.drain(seconds=_PATIENCE_S)
        with run.phase("operations"):
            short = _reapply(chaos, run.times(_REAPPLIES, least=2), jobs + uploads * _ITEMS)
        proxy.choose = None
        totals = measure.totals(cluster, planned=jobs + uploads * _ITEMS)
        broken = [*totals.broken(), *cluster.check(), *short, *_wrongly_decided(cluster)]
        if workers.code is not None or api.code is not None:
            broken.append("a program ended")
        cuts = {kind: cutter.of(kind) for kind in wanted}
        total = sum(cutter.cut.values())
        written = sum(number for name, number in proxy.counts.items() if "written" in name)
        figures = {**totals.as_figures(), "cuts": cuts, "uploads_asked_again": repeats}
        figures |= {"cut": total, "written": written, "unwritten": total - written}
        missed = [f"{n} COMMITs of {kind} not cut" for kind, n in cutter.left.items()]
        return Measured(
            figure=f"{total} COMMITs cut, {written} written and {total - written} not; of these "
            f"{sum(cuts['finish'].values())} ended jobs and {sum(cuts['claim'].values())} claimed "
            f"some; {totals.completed} of {totals.planned} jobs completed, {totals.doubled} "
            f"annotations doubled, {totals.burnt} attempts burnt",
            broken=broken,
            missed=missed,
            figures=figures,
            phases=measure.described(cluster, run.phases),
        )


def _upload(uploader: Uploader, uploads: int) -> int:
    """Make so many uploads; how often one was asked again because its fate was unknown."""
    try:
        return sum(
            uploader.many(f"upload-{number}", _ITEMS, seconds=_PATIENCE_S)
            for number in range(uploads)
        )
    finally:
        uploader.close()


def _reapply(chaos: Load, number: int, items: int) -> list[str]:
    """Apply all answers again so many times; what went wrong."""
    scope = Scope(post_processor_id=chaos.processor.id, dataset_id=chaos.dataset.id)
    for _ in range(number):
        reapply.begin(chaos.cluster.deps, chaos.processor, scope, chaos.user_id)

    def are_over() -> bool:
        return not chaos.cluster.one("SELECT count(*) FROM operations WHERE completed_at IS NULL")

    wait_for(are_over, seconds=_PATIENCE_S, what="the end of the operations")
    wrong = chaos.cluster.one(
        "SELECT count(*) FROM operations WHERE status <> 'completed' "
        "OR (kind = :kind AND done <> :items)",
        kind=reapply.KIND,
        items=items,
    )
    return [f"{wrong} operations failed, or counted an item twice or never"] if wrong else []


_WRONG = {
    "jobs were claimed, or ended, more than once": """
        SELECT count(*) FROM post_processor_jobs WHERE attempts <> 1""",
    "jobs have not just one finished attempt in their history": """
        SELECT count(*) FROM post_processor_jobs j WHERE 1 <> (
          SELECT count(*) FROM job_attempts a WHERE a.job_id = j.id AND a.cause = 'finished')""",
    "jobs ran their code twice": """
        SELECT count(*) FROM post_processor_jobs j WHERE 1 <> (
          SELECT count(*) FROM chaos_markers m WHERE m.job = j.id)""",
    "leases were left to a sweep": """
        SELECT count(*) FROM job_attempts WHERE cause = 'rescued'""",
}
"""A COMMIT that was decided wrong leaves one of these behind."""


def _wrongly_decided(cluster: Cluster) -> list[str]:
    found = {sentence: cluster.one(query) for sentence, query in _WRONG.items()}
    return [f"{number} {sentence}" for sentence, number in found.items() if number]


add(
    Scenario(
        name="commit-unknown",
        faults=("F12",),
        promise="When the link to PostgreSQL is lost while a COMMIT is under way, each process "
        "finds out whether it was written, and goes on from there: nothing is lost, done "
        "twice, or paid with an attempt.",
        fault="A proxy cuts the link at the COMMIT: half of them before it reaches PostgreSQL, "
        "half after PostgreSQL has written it or while it does; at the ends of jobs, claims, "
        "chunks of operations, uploads, new labels and folded label stats.",
        target="200 ends of jobs and 200 claims (reference: 1,000), all decided right",
        once=_once,
        quick_scale=0.05,
    )
)
