"""``python -m benchmarks``: everything in one go, with servers of its own; see README.md.

Exits 1 when a run was not correct or a target is not met.
"""

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import full_job, growth, idle, inferences
from benchmarks.report import Report, Row
from benchmarks.servers import Servers

if TYPE_CHECKING:
    from collections.abc import Callable

JOB_TIMES = 5.0
LATENCY_MS = 10.0
IDLE_PERCENT = 3.0
RSS_MB = 100.0
GROWTH_SHARE = 0.8
BARE_SHARE = 0.2
INFERENCES_MB = 100.0

PARTS = ("job", "idle", "growth", "inferences")


def main() -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2,000 items, one round")
    parser.add_argument("--items", type=int, help="items of the full job; default 10,000")
    parser.add_argument("--rounds", type=int, help="rounds of the full job; default 3")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, by comma: %(default)s")
    parser.add_argument("--no-save", action="store_true", help="leave benchmarks/results alone")
    asked = parser.parse_args()
    items = asked.items or (2_000 if asked.quick else 10_000)
    rounds = asked.rounds or (1 if asked.quick else 3)
    with tempfile.TemporaryDirectory(prefix="ppb") as folder:
        servers = Servers(Path(folder))
        try:
            report = Report({"items": items, "rounds": rounds}, servers.facts())
            parts: dict[str, Callable[[], None]] = {
                "job": lambda: _job(servers, report, items, rounds),
                "idle": lambda: _idle(servers, report, items),
                "growth": lambda: _growth(servers, report, items),
                "inferences": lambda: _inferences(servers, report, items * 5, rounds),
            }
            for name in asked.only.split(","):
                parts[name]()
        finally:
            servers.close()
    sys.stdout.write("\n" + report.markdown())
    if not asked.no_save:
        report.save(_name(asked.only, is_quick=asked.quick))
    return 0 if report.is_good else 1


def _name(parts: str, *, is_quick: bool) -> str:
    """Where a run is kept: a part of it does not replace the whole."""
    whole = "quick" if is_quick else "bench"
    return whole if parts == ",".join(PARTS) else f"{whole}-{parts.replace(',', '-')}"


def _job(servers: Servers, report: Report, items: int, rounds: int) -> None:
    systems: dict[str, Callable[[], full_job.Drain]] = {
        "by hand": lambda: full_job.by_hand(servers, items),
        "ppworker": lambda: full_job.ppworker(servers, items),
        # Four times as many: it is done in a blink otherwise.
        "limit": lambda: full_job.set_based_limit(servers, items * 4),
    }
    drains: dict[str, list[full_job.Drain]] = {name: [] for name in systems}
    for number in range(rounds):
        for name, run in systems.items():
            drain = run()
            drains[name].append(drain)
            report.faults += [f"full job, {name}, round {number}: {f}" for f in drain.faults]
            _say(f"round {number}: {name} {drain.rate:,.0f} items/s {drain.cpu_ms or ''}")
    rate = {name: statistics.median(d.rate for d in found) for name, found in drains.items()}
    times = rate["ppworker"] / rate["by hand"]
    report.raw["full_job"] = {
        name: [
            {"rate": round(d.rate, 1), "cpu_ms_per_item": d.cpu_ms, "rss_mb": d.rss_mb}
            for d in found
        ]
        for name, found in drains.items()
    }
    notes = {
        "by hand": "dramatiq + psycopg, one item per message, 2 x 8 threads",
        "ppworker": "batched; 2 worker processes, nothing switched off",
        "limit": "sets of 100 on the lean schema, no queue, 2 processes",
    }
    for name, found in drains.items():
        rates = sorted(d.rate for d in found)
        figure = f"{rate[name]:,.0f} items/s ({rates[0]:,.0f} to {rates[-1]:,.0f})"
        report.rows.append(Row(f"full item job, {name}", figure, note=notes[name]))
    report.rows += [
        Row(
            "ppworker against by hand",
            f"{times:.1f} x",
            f">= {JOB_TIMES:g} x",
            times >= JOB_TIMES,
            "median of rounds, interleaved",
        ),
        Row("ppworker against the limit", f"{rate['ppworker'] / rate['limit']:.2f}"),
    ]


def _idle(servers: Servers, report: Report, items: int) -> None:
    found = idle.measure(servers, uploads=200, rate=20, rest_s=20, backlog=items)
    report.faults += [f"idle: {fault}" for fault in found.faults]
    shares = (0.5, 0.95, 0.99)
    stored = [idle.percentile(found.stored_ms, share) for share in shares]
    seen = [idle.percentile(found.seen_ms, share) for share in shares]
    cpu = found.cpu_percent
    report.raw["idle"] = {
        "stored_ms": stored,
        "seen_ms": seen,
        "cpu_percent": cpu,
        "rss_mb": found.rss_mb,
        "pss_mb": found.pss_mb,
    }
    report.rows += [
        Row(
            "idle latency p50",
            f"{seen[0]:.1f} ms",
            f"< {LATENCY_MS:g} ms",
            seen[0] < LATENCY_MS,
            "commit of one upload to the finishing commit",
        ),
        Row("idle latency p95, p99", f"{seen[1]:.1f} ms, {seen[2]:.1f} ms"),
        Row(
            "idle CPU",
            f"{cpu['all']:.2f} % of a core",
            f"< {IDLE_PERCENT:g} %",
            cpu["all"] < IDLE_PERCENT,
            ", ".join(f"{name} {cpu[name]:.2f}" for name in ("workers", "postgres", "redis")),
        ),
        Row(
            "memory of a worker process",
            f"{found.rss_mb[0]:.0f} MB (PSS {found.pss_mb[0]:.0f})",
            f"< {RSS_MB:g} MB",
            found.rss_mb[0] < RSS_MB,
            "no model loaded",
        ),
        Row(
            f"the same after {items:,} and {2 * items:,} items",
            f"{found.rss_mb[1]:.0f}, {found.rss_mb[2]:.0f} MB",
            f"< {RSS_MB:g} MB",
            max(found.rss_mb) < RSS_MB,
            f"second growth {found.rss_mb[2] - found.rss_mb[1]:+.1f} MB",
        ),
    ]
    _say(f"idle: {report.raw['idle']}")


def _growth(servers: Servers, report: Report, items: int) -> None:
    small, large = growth.measure(servers, items), growth.measure(servers, items * 20)
    for each in (small, large):
        report.faults += [f"growth {each.pending}: {fault}" for fault in each.faults]
        claims = " / ".join(f"{ms:.1f}" for ms in each.claim_ms)
        report.rows.append(
            Row(
                f"backlog of {each.pending:,}, one thread",
                f"{each.rate:,.0f} items/s",
                note=f"claim of 200: {claims} ms, first / middle / last tenth",
            )
        )
        _say(f"growth {each.pending}: {each.rate:,.0f} items/s, claim {claims} ms")
    share = large.rate / small.rate
    report.raw["growth"] = [
        {"pending": g.pending, "rate": round(g.rate, 1), "claim_ms": g.claim_ms}
        for g in (small, large)
    ]
    report.rows.append(
        Row(
            "throughput of the large backlog against the small",
            f"{share:.2f}",
            f">= {GROWTH_SHARE:g}",
            share >= GROWTH_SHARE,
        )
    )


def _inferences(servers: Servers, report: Report, total: int, rounds: int) -> None:
    found: list[inferences.Found] = []
    for number in range(rounds):
        found.append(inferences.measure(servers, total))
        report.faults += [f"inferences, round {number}: {f}" for f in found[-1].faults]
        _say(f"inferences {number}: {found[-1].rate:,.0f}/s, bare {found[-1].bare_rate:,.0f}/s")
    share = statistics.median(each.rate / each.bare_rate for each in found)
    growth_mb = max(each.growth_mb for each in found)
    report.raw["inferences"] = [asdict(each) for each in found]
    report.rows += [
        Row(
            f"{total:,} inferences in one call",
            f"{statistics.median(each.rate for each in found):,.0f}/s",
            note=f"{found[0].predictions:,} annotations; one worker, checking included",
        ),
        Row(
            "bare COPY and INSERT ... SELECT of the same rows",
            f"{statistics.median(each.bare_rate for each in found):,.0f}/s",
            note="one transaction, no stats, nothing checked",
        ),
        Row(
            "inferences against the bare copy",
            f"{share:.2f}",
            f">= {BARE_SHARE:g}",
            share >= BARE_SHARE,
            "median of rounds",
        ),
        Row(
            "growth of the worker's memory by them",
            f"{growth_mb:.0f} MB",
            f"< {INFERENCES_MB:g} MB",
            growth_mb < INFERENCES_MB,
            "peak",
        ),
    ]


_STARTED = time.monotonic()


def _say(line: str) -> None:
    sys.stderr.write(f"[{time.monotonic() - _STARTED:5.0f} s] {line}\n")


if __name__ == "__main__":
    sys.exit(main())
