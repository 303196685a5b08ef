"""Decides who is to blame when a worker dies, or hangs, with a batch in a model of its own process.

Any job of the batch may be the cause. They become suspects, halved among themselves; a group of
suspects runs with nothing else in that process. A group that brings death again is halved again, so
the one that does it soon stands alone, and the others answer.
"""

from collections.abc import Sequence
from typing import Literal, TypeVar

T = TypeVar("T")

Blame = Literal["none", "charged", "refunded", "alone"]
"""``none``: it was in no model; ``charged``: it becomes a suspect and pays its attempt;
``refunded``: one of several suspects, its attempt is given back; ``alone``: it did it."""


def blame(*, in_model: int, is_suspect: bool) -> Blame:
    """Tell what a death means for one job.

    Only a suspect runs alone in its process: beside the first batch that a worker died with there
    may have been another, so even a batch of one is charged and not blamed.

    Args:
        in_model: jobs of its batch that were in the model together, itself among them; 0 for none.
        is_suspect: whether it ran as a suspect.
    """
    if not in_model:
        return "none"
    if not is_suspect:
        return "charged"
    return "alone" if in_model == 1 else "refunded"


def halves(members: Sequence[T]) -> list[Sequence[T]]:
    """The groups in which the members of a dead batch run next: each smaller than it, if it can
    be. A single member stays a group of its own."""
    middle = len(members) // 2
    return [half for half in (members[:middle], members[middle:]) if half]
