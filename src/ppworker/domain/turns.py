"""Decides whom a claim serves first, so that nobody waits for ever.

Interactive jobs come before bulk ones, except at every fifth claim of a post-processor in a
process, which asks for bulk first. So a steady stream of interactive jobs leaves bulk a fifth of
the claims, and bulk of any size leaves interactive jobs four fifths. Suspects have
every second turn, and each that nobody else needs: they have waited for a lease already, and run
one batch at a time in a process, whatever it has of slots.
"""

INTERACTIVE, BULK = 0, 1
"""Priorities of jobs."""

ROUND = 5
"""Claims in which everybody has a turn."""


def first_priority(number: int) -> int:
    """The priority that the claim of this number serves first; the other gets what it leaves."""
    return BULK if number % ROUND == ROUND - 1 else INTERACTIVE


def is_for_suspects(number: int) -> bool:
    """Whether waiting suspects come first at the claim of this number."""
    return number % 2 == 1
