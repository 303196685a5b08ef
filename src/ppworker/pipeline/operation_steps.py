"""Every kind of operation, with the step that runs it."""

from collections.abc import Mapping

from ppworker.pipeline import apply_inferences, inferences, reapply
from ppworker.pipeline.operations import Step

STEPS: Mapping[str, Step] = {
    inferences.KIND: apply_inferences.step,
    reapply.KIND: reapply.step,
}
