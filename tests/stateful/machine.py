"""The whole machine: every rule on one dataset, and the histories in which most faults lie."""

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from stateful.base import TEXTS, WHICH, Taken
from stateful.data_rules import FILE, VERDICTS, DataRules
from stateful.job_rules import ANSWERS, CLAIM, JobRules, Said
from stateful.operation_rules import OperationRules
from stateful.setting_rules import SettingRules

EVENTS = (
    "lost", "lost", "lost", "edited", "edited", "replaced", "cancelled", "deleted", "retried",
    "nothing",
)  # fmt: skip
ENDS = ("finish", "finish", "heartbeat", "release")
JUDGED: dict[str, Any] = {
    "which": WHICH,
    "verdict": st.sampled_from(VERDICTS),
    "label": WHICH,
    "then": st.sampled_from(["", "again", "again", "less", "bulk", "bulk"]),
}


class Machine(JobRules, DataRules, OperationRules, SettingRules):
    """People, workers and operations, in any order, with stale tokens among them."""

    def judge(self, which: int, verdict: str, label: int, then: str) -> None:
        """A person says something of a prediction; then it is made again, or not any more, or all
        suggestions are decided of at once."""
        row = self.pick(self.spoken(), which)
        name = self.now.labels[row.label_id].name
        self._judge(row, verdict, label)
        if then == "bulk":
            place = list(self.now.versions).index(row.version_id)
            self.begin_operation("review", place, which, at_once=True)
        elif row.source == "inference" and then:
            said = {"prediction": name, "confidence": 0.8, "coordinates": row.coordinates}
            line = {"name": "x", "dataset_item_id": str(row.item_id), "inference_items": [said]}
            split = next(
                split
                for item_id, version_id, split in sorted(self.now.members)
                if (item_id, version_id) == (row.item_id, row.version_id)
                and split in self.now.splits
            )
            self._add(self.split(split), line)
        elif row.source == "model" and then:
            place = list(self.now.processors).index(row.post_processor_id)
            self._set_threshold(row.post_processor_id, 0.5 if then == "less" else 0.0)
            self.begin_operation("reapply", place, 0, at_once=True)

    judge_once = precondition(lambda self: self.spoken())(rule(**JUDGED)(judge))
    judge_twice = precondition(lambda self: self.spoken())(rule(**JUDGED)(judge))

    @rule(
        **CLAIM,
        events=st.tuples(st.sampled_from(EVENTS), st.sampled_from(ENDS)),
        said=ANSWERS,
        changed=st.tuples(st.sampled_from(TEXTS), FILE),
    )
    def interrupted(
        self, which: int, limit: int, worker: int, *, events: tuple[str, str],
        said: list[Said], changed: tuple[str, str],
    ) -> None:  # fmt: skip
        """While a batch is in the model, something happens to its jobs; then its worker goes on."""
        if not self._claim(which, limit, worker):
            return
        taken, (event, end) = self.taken[-1], events
        self._happen(event, taken, 1 - worker, *changed)
        if end == "finish":
            self._finish(taken, said, cached=False)
        elif end == "heartbeat":
            self._heartbeat(taken)
        else:
            self._release(taken)

    def _happen(self, event: str, taken: Taken, other: int, text: str, name: str) -> None:
        job = self.now.jobs[taken.batch.jobs[0].id]
        if event == "lost":
            self._abandon(taken, in_model=len(taken.batch.jobs) > 1)
            self._rescue()
            self._claim(list(self.now.processors).index(taken.processor.id), 4, other, any_=True)
        elif (job.item_id, job.version_id) not in self.seen():
            return
        elif event == "edited":
            self._edit_text(job.item_id, job.version_id, f"{text} {len(self.now.attempts)}")
        elif event == "replaced":
            self._put_file(job.item_id, job.version_id, name)
        elif event == "cancelled":
            self._cancel(job)
        elif event == "deleted":
            for item_id, version_id, split_id in sorted(self.now.members):
                is_its = (item_id, version_id) == (job.item_id, job.version_id)
                if is_its and split_id in self.now.splits:
                    self._delete_item(item_id, split_id)
        elif event == "retried":
            for early in self.now.jobs.values():
                same = (early.item_id, early.version_id) == (job.item_id, job.version_id)
                if same and early.status == "failed":
                    self._retry(early, successors=False)
