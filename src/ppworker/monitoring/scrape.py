"""What a scrape is answered: the figures of all processes, their vitals, and the database's."""

import platform
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from ppworker.domain.circuit import State
from ppworker.metric_names import BY_NAME
from ppworker.metrics import is_readable
from ppworker.monitoring import folder, vitals
from ppworker.store.gauges import Readings

_CIRCUITS = {State.CLOSED: 0.0, State.HALF_OPEN: 1.0, State.OPEN: 2.0}


class Scrape(Collector):
    """The metrics of one group of processes."""

    def __init__(
        self,
        place: Path | None,
        *,
        version: str,
        schema_version: str,
        database: Callable[[], Readings | None],
        redis: Callable[[], bool | None],
    ) -> None:
        """Scrape a group.

        Args:
            place: folder of the group; None for a process that stands alone.
            version: of the program.
            schema_version: revision of the schema that it knows.
            database: reads the gauges; answers None when the database is away. Quick, never raises.
            redis: whether redis answers; None when there is none. Quick, never raises.
        """
        self._place = place
        self._version = version
        self._schema_version = schema_version
        self._database = database
        self._redis = redis

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return generate_latest(registry)

    def collect(self) -> Iterator[Metric]:
        """Every family with its samples."""
        yield self._about_build()
        if self._place is not None:
            yield from _from_files(self._place)
            yield from _from_vitals(self._place)
        readings = self._database()
        yield _single("database_up", float(readings is not None))
        if readings is not None:
            yield from _from_database(readings)
        redis = self._redis()
        if redis is not None:
            yield _single("redis_up", float(redis))

    def _about_build(self) -> Metric:
        labels = (self._version, platform.python_version(), self._schema_version)
        return _gauge("build_info", {labels: 1.0})


def _from_files(place: Path) -> Iterable[Metric]:
    """Counters and histograms of every slot, dead ones included: counts must not shrink."""
    # Checked first: one broken file must not take the figures of all others with it.
    readable = [str(path) for path in place.glob("*_*.db") if is_readable(path)]
    merged: Iterable[Metric] = MultiProcessCollector.merge(readable)  # type: ignore[no-untyped-call]
    return merged


def _from_vitals(place: Path) -> Iterator[Metric]:
    found = [vitals.read(place, slot) for slot in folder.worker_slots(place)]
    living = [each for each in found if each is not None]
    in_progress: Counter[str] = Counter()
    for each in living:
        in_progress.update(each.in_progress)
    yield _gauge("jobs_in_progress", {(name,): float(n) for name, n in in_progress.items()})
    yield _single("worker_slots", float(sum(each.slots for each in living)))
    yield _single("worker_slots_in_use", float(sum(each.busy for each in living)))
    renewals = [each.renewed_at for each in living if each.renewed_at is not None]
    if renewals:
        yield _single("heartbeat_lag_seconds", max(0.0, time.monotonic() - min(renewals)))


def _from_database(found: Readings) -> Iterator[Metric]:
    jobs: defaultdict[tuple[str, ...], float] = defaultdict(float)
    due: defaultdict[tuple[str, ...], float] = defaultdict(float)
    waited: dict[tuple[str, ...], float] = {}
    paused: dict[tuple[str, ...], float] = {}
    circuits: dict[tuple[str, ...], float] = {}
    leases: dict[tuple[str, ...], float] = {}
    for each in found.processors:  # those of one name in several datasets become one
        key = (each.name,)
        for status in ("pending", "processing", "completed", "failed"):
            jobs[each.name, status] += getattr(each, status)
        due[key] += each.due
        leases[key] = found.oldest_lease_s.get(each.name, 0.0)
        is_off = each.paused_by_operator or not each.enabled
        paused[key] = max(paused.get(key, 0.0), float(is_off))
        circuits[key] = max(circuits.get(key, 0.0), _CIRCUITS[each.circuit])
        if not each.is_held:
            waited[key] = max(waited.get(key, 0.0), each.oldest_due_s or 0.0)
    yield _gauge("jobs", jobs)
    yield _gauge("jobs_due", due)
    yield _gauge("oldest_due_job_age_seconds", waited)
    yield _gauge("oldest_lease_age_seconds", leases)
    yield _gauge("processor_paused", paused)
    yield _gauge("circuit_state", circuits)
    yield _gauge("workers", {(state,): float(n) for state, n in found.workers.items()})
    yield _single("stats_staleness_seconds", max(0.0, found.oldest_delta_s or 0.0))
    yield _single("stats_unfolded_deltas", float(found.deltas))
    yield _gauge("operations", {key: float(n) for key, n in found.operations.items()})
    yield _single("dead_letters", float(found.dead_letters))
    yield _single("db_oldest_transaction_age_seconds", max(0.0, found.oldest_transaction_s))
    yield _single("job_table_dead_tuples", float(found.dead_tuples))
    if found.hot_ratio is not None:
        yield _single("job_table_hot_update_ratio", found.hot_ratio)


def _single(name: str, value: float) -> Metric:
    return _gauge(name, {(): value})


def _gauge(name: str, samples: Mapping[tuple[str, ...], float]) -> Metric:
    about = BY_NAME[f"ppworker_{name}"]
    family = GaugeMetricFamily(about.name, about.text, labels=about.labels)
    for labels, value in samples.items():
        family.add_metric(labels, value)
    return family
