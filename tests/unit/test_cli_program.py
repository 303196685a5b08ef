"""What the program says about mistakes, and what it costs to ask for help."""

import json
import subprocess
import sys
import time

import pytest

from ppworker import settings
from ppworker.cli import program, render, serve
from ppworker.errors import ConfigurationError, Invalid, StoreUnavailable


def explained(error, capsys):
    code = program._explain(error)
    line = capsys.readouterr().err
    assert line.startswith("ppworker: ")
    assert line.endswith("\n")
    assert line.count("\n") == 1
    return code, line.removeprefix("ppworker: ").strip()


def test_a_request_names_its_field_as_the_command_line_writes_it(capsys):
    assert explained(Invalid("no", field="name"), capsys) == (2, "name: no")
    assert explained(Invalid("no", field="output_target"), capsys) == (2, "--target: no")
    error = Invalid("no", field="runner_config.dpi")
    assert explained(error, capsys) == (2, "--config dpi: no")
    assert explained(Invalid("no"), capsys) == (2, "no")


def test_each_kind_of_error_has_its_exit_code(capsys):
    assert explained(ConfigurationError("PPWORKER_X: no"), capsys) == (2, "PPWORKER_X: no")
    assert explained(StoreUnavailable("away"), capsys)[0] == 1
    code, line = explained(ZeroDivisionError("by zero"), capsys)
    assert code == 1
    assert "unexpected ZeroDivisionError: by zero" in line
    assert explained(OSError(28, "No space left on device"), capsys) == (
        1,
        "No space left on device",
    )


def test_an_error_is_one_harmless_line(capsys):
    _, line = explained(Invalid("two\nlines\x1b[2J\u202e\udcff", field="x"), capsys)
    assert line == r"x: two lines\x1b[2J\u202e\udcff"


def test_secrets_are_not_said(capsys, monkeypatch):
    monkeypatch.setenv("PPWORKER_DATABASE_URL", "postgresql://u:hunter%2F2@h/d")
    for said in ("hunter%2F2", "hunter/2", "postgresql://a:zzz999@h"):
        _, line = explained(RuntimeError(f"cannot {said} do"), capsys)
        assert "hunter" not in line
        assert "zzz999" not in line


def test_a_traceback_is_shown_to_those_who_debug(capsys, monkeypatch):
    monkeypatch.setenv("PPWORKER_LOG_LEVEL", "debug")
    program._explain(RuntimeError("x"))
    assert "RuntimeError: x\nppworker: unexpected" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["items", "add", "a\0b"], "argument 3"),
        (["items", "add", "\udcff"], "argument 3"),
        (["items", "add", "--key", "\ud800"], "--key"),
    ],
)
def test_what_is_no_text_is_refused(arguments, named, capsys):
    assert program._guarded(arguments) == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["nope"], ["datasets"], ["datasets", "nope"], ["up", "--processes", "0"], ["-x"]]
)
def test_a_wrong_command_is_one_line(arguments, capsys):
    assert program._guarded(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("folder", "said"), [("", "is empty"), (__file__, "is a file"), (__file__ + "/x", "be made")]
)
def test_a_data_folder_that_is_none_is_refused(folder, said, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert program._guarded(["status", "--data-dir", folder]) == 2
    assert said in capsys.readouterr().err
    assert not any(tmp_path.iterdir())  # no servers in the working directory


def test_the_address_is_shown_without_passwords():
    url = "postgresql+psycopg://joe:hunter2@db:5433/x?password=hunter2&sslpassword=hunter2&application_name=b"
    shown = serve._address(settings.load(database_url=url))
    assert shown == "postgresql://joe@db:5433/x?application_name=b"


def test_interrupts_and_vanished_readers_have_exit_codes(monkeypatch):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "_run", interrupted)
    assert program._guarded([]) == 130


def test_help_is_quick_and_imports_nothing_heavy():
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "ppworker", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert time.monotonic() - started < 2.0  # 0.3 s on an idle machine
    for heavy in ("sqlalchemy", "pydantic", "dramatiq", "redis", "PIL", "psycopg", "alembic"):
        assert f" {heavy}\n" not in done.stderr, heavy
    for command in program._COMMANDS:
        assert command in done.stdout


@pytest.mark.parametrize("command", sorted(program._COMMANDS))
def test_every_command_has_help(command, capsys):
    assert program._guarded([command, "--help"]) == 0
    assert program._COMMANDS[command][1] in capsys.readouterr().out or command in (
        "up",
        "worker",
        "status",
        "verify",
        "sweep",
        "migrate",
    )


def test_no_command_prints_help(capsys):
    assert program._guarded([]) == 0
    assert "Usage" in capsys.readouterr().out


def test_a_table_cannot_style_the_terminal(capsys):
    render.table([{"id": "1", "name": "[red]x[/red] \x1b[31m\n"}], ("id", "name"))
    shown = capsys.readouterr().out
    assert "[red]x[/red]" in shown
    assert "\x1b" not in shown
    assert shown.count("\n") == 2


def test_json_is_one_line_of_ascii(capsys):
    render.as_json({"text": "é\udcff\n\u2028"})
    shown = capsys.readouterr().out
    assert shown.isascii()
    assert shown.count("\n") == 1
    assert json.loads(shown) == {"text": "é\udcff\n\u2028"}


def test_a_long_row_stays_one_line_in_a_pipe(capsys):
    render.table([{"id": "1", "text": "word " * 300}], ("id", "text"))
    assert capsys.readouterr().out.count("\n") == 2
