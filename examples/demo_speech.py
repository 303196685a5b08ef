"""The speech examples and what is said in them, and how many words a model got wrong."""

from pathlib import Path

SPEECH = Path(__file__).with_name("speech")
"""Recordings and their transcripts; their origin and licence stand in the README there."""


def transcripts() -> dict[str, str]:
    """What is said in each recording, by the name of its file."""
    lines = (SPEECH / "transcripts.tsv").read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t") for line in lines)


def wrong_words(said: str, heard: str) -> tuple[int, int]:
    """Fewest words to insert, delete or replace to get from one to the other; and words said.

    The first divided by the second is the word error rate.
    """
    wanted, found = said.lower().split(), heard.lower().split()
    costs = list(range(len(found) + 1))
    for row, word in enumerate(wanted, start=1):
        diagonal, costs[0] = costs[0], row
        for column, other in enumerate(found, start=1):
            replaced = diagonal + (word != other)
            diagonal = costs[column]
            costs[column] = min(replaced, diagonal + 1, costs[column - 1] + 1)
    return costs[-1], len(wanted)
