"""Datasets take turns in the slots of a process, however many post-processors each has."""

from collections import Counter
from collections.abc import Sequence
from uuid import UUID

from ppworker.worker.poller import Poll, Poller

ALONE = UUID(int=1)
MANY = [UUID(int=100 + i) for i in range(10)]
DATASETS = {ALONE: UUID(int=1000), **dict.fromkeys(MANY, UUID(int=2000))}


class Slots:
    """The slots of one process: whenever one is free, the poller says for whom."""

    def __init__(self, due: Sequence[UUID], slots: int) -> None:
        self.now = 0.0
        self.poller = Poller(
            lambda: Poll(due=due, datasets=DATASETS), interval_s=1.0, clock=lambda: self.now
        )
        self.running: list[UUID] = []
        self.turns: Counter[UUID] = Counter()
        self._slots = slots

    def fill(self) -> None:
        for id_ in self.poller.due(self._slots - len(self.running), Counter(self.running)):
            self.now += 0.001
            self.poller.served(id_)
            self.running.append(id_)
            self.turns[id_] += 1

    def run(self, turns: int) -> Counter[UUID]:
        for _ in range(turns):
            self.fill()
            self.now += 1.0
            self.running.pop(0)
        return self.turns


def test_one_post_processor_beside_ten_of_another_dataset_has_half_the_turns() -> None:
    for slots in (1, 2, 4):
        turns = Slots([*MANY, ALONE], slots).run(200)
        share = turns[ALONE] / turns.total()
        assert 0.45 <= share <= 0.55, (slots, share)
        assert max(turns[id_] for id_ in MANY) - min(turns[id_] for id_ in MANY) <= 2


def test_a_dataset_that_is_alone_has_every_slot() -> None:
    assert Slots(MANY, 4).run(100).total() >= 100


def test_what_is_due_goes_to_different_datasets_at_once() -> None:
    slots = Slots([*MANY, ALONE], 2)
    slots.fill()
    assert {DATASETS[id_] for id_ in slots.running} == set(DATASETS.values())
