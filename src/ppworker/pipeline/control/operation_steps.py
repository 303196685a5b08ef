"""Every kind of operation, with the step that runs it."""

from collections.abc import Mapping

from ppworker.pipeline.control import reapply
from ppworker.pipeline.control.operations import Step
from ppworker.pipeline.edits import reviews, undo
from ppworker.pipeline.inferences import apply_inferences, inferences

STEPS: Mapping[str, Step] = {
    inferences.KIND: apply_inferences.step,
    reapply.KIND: reapply.step,
    reviews.KIND: reviews.step,
    undo.KIND: undo.step,
}
