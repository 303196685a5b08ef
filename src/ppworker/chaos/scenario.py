"""What a scenario is: a fault, what must hold through it, and how a run of it is judged."""

import random
import statistics
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ppworker.chaos.cluster import Cluster, open_cluster
from ppworker.chaos.results import Result

Say = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a scenario is to be run.

    Attributes:
        scale: of loads, times and repetitions; 1 is what the promise is about.
        repeat: runs; ratios are judged by their median.
        seed: of everything random; each run takes the next.
        keep: folder below which each run leaves its servers' data and logs; None: nothing stays.
        judge_speed: whether a missed figure of speed fails the scenario, as a broken promise of
            correctness always does.
    """

    scale: float = 1.0
    repeat: int = 1
    seed: int = 1
    keep: Path | None = None
    judge_speed: bool = True


@dataclass(slots=True)
class Phase:
    """A stretch of a run, by the clock of this machine, which PostgreSQL shares."""

    name: str
    began: datetime
    ended: datetime | None = None

    @property
    def seconds(self) -> float:
        """How long it lasted, or has lasted."""
        return ((self.ended or datetime.now(UTC)) - self.began).total_seconds()


@dataclass(slots=True, kw_only=True)
class Measured:
    """What one run found.

    Attributes:
        figure: what was reached, in words.
        broken: promises of correctness that did not hold, as sentences; must be empty.
        missed: figures of speed that were not reached, as sentences.
        ratio: throughput after the fault by that before; None where it is not the point.
        least_ratio: what the median of the ratios must be.
        figures: everything measured, by name.
        phases: for the plot, see ``measure.described``.
    """

    figure: str
    broken: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    ratio: float | None = None
    least_ratio: float = 0.95
    figures: dict[str, Any] = field(default_factory=dict)
    phases: list[dict[str, Any]] = field(default_factory=list)


class Run:
    """One run of a scenario: its size, its chance, its phases, its servers."""

    def __init__(self, options: Options, number: int, say: Say) -> None:
        """Use ``Scenario.run``."""
        self.scale = options.scale
        self.number = number
        self.random = random.Random(options.seed + number)  # noqa: S311  faults, not secrets
        self.phases: list[Phase] = []
        self._keep = options.keep
        self._clusters = 0
        self._say = say

    def times(self, full: float, *, least: int = 1) -> int:
        """A number of jobs or repetitions at this scale."""
        return max(least, round(full * self.scale))

    def seconds(self, full: float, *, least: float = 2.0) -> float:
        """A duration at this scale."""
        return max(least, full * self.scale)

    @contextmanager
    def cluster(self) -> Iterator[Cluster]:
        """Fresh servers for this run, or for a part of it."""
        self._clusters += 1
        name = f"run-{self.number}-{self._clusters}"
        folder = None if self._keep is None else self._keep / name
        with open_cluster(folder) as cluster:
            yield cluster

    @contextmanager
    def phase(self, name: str) -> Iterator[Phase]:
        """A named stretch: ``warm-up``, ``baseline``, ``fault``, ``recovery`` or another."""
        phase = Phase(name, datetime.now(UTC))
        self.phases.append(phase)
        try:
            yield phase
        finally:
            phase.ended = datetime.now(UTC)
            self.say(phase=name, seconds=round(phase.seconds, 1))

    def say(self, **values: Any) -> None:
        """Tell whoever watches; becomes one JSON line."""
        self._say(values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A fault that can be done to a running ppworker, and what is promised.

    Attributes:
        name: a word for the command line and for the file of its results.
        faults: numbers of the faults that it stands for, such as ``F17``.
        promise: what holds, as a sentence for people who run it.
        fault: what is done.
        target: the figure that must be reached.
        once: does it one time.
        repeat: runs of ``make chaos``; 3 where a ratio of throughput is judged.
        quick_scale: scale at which ``make chaos-quick`` runs it.
    """

    name: str
    faults: Sequence[str]
    promise: str
    fault: str
    target: str
    once: Callable[[Run], Measured]
    repeat: int = 1
    quick_scale: float = 0.1

    def run(self, options: Options, say: Say) -> Result:
        """Do it as often as wanted and judge it.

        Args:
            options: how.
            say: told one mapping per phase and per run.
        """
        found: list[Measured] = []
        for number in range(options.repeat):

            def told(values: Mapping[str, Any], number: int = number) -> None:
                say({"scenario": self.name, "run": number, **values})

            run = Run(options, number, told)
            measured = self._measured(run)
            found.append(measured)
            told({"figure": measured.figure, "broken": measured.broken, "missed": measured.missed})
        whole = combined(found)
        broken, missed = whole.broken, whole.missed
        return Result(
            name=self.name,
            faults=self.faults,
            promise=self.promise,
            fault=self.fault,
            how=f"ppworker chaos {self.name} --repeat {options.repeat}"
            + (f" --scale {options.scale:g}" if options.scale != 1 else ""),
            target=self.target,
            figure="; ".join([whole.figure, *broken, *missed]),
            passed=not broken and not (missed and options.judge_speed),
            figures={**whole.figures, "broken": broken, "missed": missed},
            phases=whole.phases,
        )

    def _measured(self, run: Run) -> Measured:
        """One run; one that breaks off has broken its promise, and the next scenario may go on."""
        try:
            return self.once(run)
        except Exception as error:  # noqa: BLE001  whatever it was, it was not to happen
            traceback.print_exc()
            said = f"it broke off: {type(error).__name__}: {error}"
            return Measured(figure="no figure", broken=[said])


def combined(found: Sequence[Measured]) -> Measured:
    """Several runs as one: what broke in any of them, and the run of the median ratio."""
    broken = [each for one in found for each in one.broken]
    with_ratio = sorted(
        (one for one in found if one.ratio is not None), key=lambda one: one.ratio or 0
    )
    if not with_ratio:
        missed = [each for one in found for each in one.missed]
        return replace(found[-1], broken=broken, missed=missed)
    ratios = [one.ratio or 0.0 for one in with_ratio]
    median = statistics.median(ratios)
    shown = with_ratio[(len(with_ratio) - 1) // 2]
    missed = [each for one in found for each in one.missed]
    if median < shown.least_ratio:
        missed.append(f"{median:.0%} of the throughput before, not {shown.least_ratio:.0%}")
    spread = f" (median of {len(ratios)})" if len(ratios) > 1 else ""
    return replace(
        shown,
        figure=f"{shown.figure}; {median:.0%} of the throughput before{spread}",
        broken=broken,
        missed=missed,
        ratio=median,
        figures={**shown.figures, "ratios": [round(each, 3) for each in ratios]},
    )


REGISTRY: dict[str, Scenario] = {}
"""Every scenario by its name, once ``ppworker.chaos.scenarios`` is imported."""


def add(scenario: Scenario) -> Scenario:
    """Make a scenario known."""
    REGISTRY[scenario.name] = scenario
    return scenario
