"""Every command that a page shows is one that the program understands."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from doc_commands import blocks
from ppworker.cli import program

TOP = Path(__file__).parents[2]
PAGES = [
    str(path.relative_to(TOP))
    for path in [*sorted((TOP / "docs").rglob("*.md")), TOP / "README.md", *TOP.glob("*/README.md")]
    # What these pages tell of is the past, or generated from the commands themselves.
    if "decisions" not in path.parts and path.name != "command-line.md"
]
SHOWN = re.compile(r"(?:^|[ =])(?:\S*/bin/)?ppworker (.*)$")
COMPOSED = re.compile(r"^docker compose .* (?:run|exec) .*?\bworker (?:ppworker )?(.*)$")
ENDS = {"|", "||", "&&", ";", "&", ">", ">>", "<", "2>&1"}


def parsed(words: list[str]) -> None:
    """Read a command line as the program does, without doing it; raises what it would say."""
    command: Any = typer.main.get_command(program._app(words))
    context = command.make_context("ppworker", list(words))
    while hasattr(command, "resolve_command"):
        name, command, rest = command.resolve_command(
            context, [*getattr(context, "_protected_args", []), *context.args]
        )
        context = command.make_context(name, rest, parent=context)


def up_to_the_end(line: str) -> list[str]:
    words = shlex.split(line, comments=True)
    end = next((n for n, word in enumerate(words) if word in ENDS), len(words))
    return words[:end]


def shown_on(page: str) -> list[list[str]]:
    """Words of every command of ppworker in the shell blocks of a page."""
    text = "\n".join(blocks(page)).replace("\\\n", " ")
    found = [
        up_to_the_end(match[1])
        for line in text.splitlines()
        if (match := COMPOSED.search(line) or SHOWN.search(line))
    ]
    return [words for words in found if words and "$" not in words[0]]


def test_pages_show_commands():
    assert sum(len(shown_on(page)) for page in PAGES) > 30


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_shell_blocks_are_understood(page):
    for words in shown_on(page):
        try:
            parsed(words)
        except Exception as error:
            raise AssertionError(f"{page}: ppworker {shlex.join(words)}: {error!r}") from error


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_sentences_exist(page):
    text = re.sub(r"```.*?```", "", (TOP / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    for shown in re.findall(r"`ppworker ([a-z][^`]*)`", text):
        first, *rest = shown.split()
        for name in first.split("|"):
            assert name.rstrip(",") in program._COMMANDS, f"{page}: {shown}"
        words = [word for word in rest if re.fullmatch(r"[a-z-]+(\|[a-z-]+)*", word)]
        root: Any = typer.main.get_command(program._app([first]))
        children = getattr(root.commands[first], "commands", None)
        if children and words and not words[0].startswith("-"):
            assert set(words[0].split("|")) <= children.keys(), f"{page}: {shown}"


@pytest.mark.parametrize(
    "line", ["nothing", "jobs nothing", "jobs list --nothing", "health", "top --interval x"]
)
def test_what_is_wrong_is_noticed(line):
    with pytest.raises(program._Usage):
        parsed(line.split())


def test_what_is_right_is_not():
    parsed(["jobs", "retry", "--failed", "--dataset", "mine"])
    parsed(["top", "--once"])
