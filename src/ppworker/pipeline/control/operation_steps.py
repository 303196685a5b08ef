"""Every kind of operation, with the step that runs it."""

from collections.abc import Mapping

from ppworker.pipeline.control import reapply, retry_jobs
from ppworker.pipeline.control.operations import Step
from ppworker.pipeline.edits import reviews, undo
from ppworker.pipeline.inferences import apply_inferences, inferences
from ppworker.pipeline.transfer import delete, duplicate, export, import_items

STEPS: Mapping[str, Step] = {
    inferences.KIND: apply_inferences.step,
    reapply.KIND: reapply.step,
    retry_jobs.KIND: retry_jobs.step,
    reviews.KIND: reviews.step,
    undo.KIND: undo.step,
    duplicate.KIND: duplicate.step,
    delete.KIND: delete.step,
    import_items.KIND: import_items.step,
    export.KIND: export.step,
}
