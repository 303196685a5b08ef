"""Rules of the house that no linter knows, each as a look at the source."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "ppworker"
MIGRATIONS = PACKAGE / "store" / "migrations"
MODULES = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}
OURS = {name: path for name, path in MODULES.items() if MIGRATIONS not in path.parents}

MOST_LINES = 400
LONGER = {
    "store/tables.py": (860, "the schema on one page"),
}
"""Files that may be longer, how long, and why."""

COMMITTERS = {"store/db.py", "store/connections.py"}  # the latter bounds the time of a COMMIT
JOB_WRITERS = {
    "store/jobs.py",
    "store/claims.py",
    "store/job_operations.py",
    "store/job_removal.py",
    "store/retention.py",
}
_WRITES_JOBS = re.compile(
    r"\b(UPDATE|INSERT\s+INTO|DELETE\s+FROM|TRUNCATE|COPY)\s+(ONLY\s+)?post_processor_jobs\b",
    re.IGNORECASE,
)
_TABLE_CALLS = {"insert", "update", "delete"}

CLOCKS = {
    ("datetime", "now"), ("datetime", "utcnow"), ("datetime", "today"), ("date", "today"),
    ("time", "time"), ("time", "time_ns"), ("time", "monotonic"), ("time", "perf_counter"),
    ("time", "sleep"),
}  # fmt: skip


def calls(path):
    """Every call of an attribute in a file as (what it is called on, its name, line)."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield ast.unparse(node.func.value), node.func.attr, node.lineno


def strings(path):
    """Every string of a file that is no docstring, with the fixed parts of f-strings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.value, node.lineno


def test_there_are_modules_to_look_at():
    assert len(OURS) > 50
    assert OURS.keys() >= COMMITTERS | JOB_WRITERS


def test_only_the_transaction_commits():
    found = {
        f"{name}:{line}"
        for name, path in OURS.items()
        for _, attribute, line in calls(path)
        if attribute == "commit" and name not in COMMITTERS
    }
    assert not found


def test_only_the_files_of_jobs_write_the_job_table():
    found = {
        f"{name}:{line}"
        for name, path in OURS.items()
        if name not in JOB_WRITERS
        for text, line in strings(path)
        if _WRITES_JOBS.search(text)
    } | {
        f"{name}:{line}"
        for name, path in OURS.items()
        if name not in JOB_WRITERS
        for holder, attribute, line in calls(path)
        if attribute in _TABLE_CALLS and holder.endswith("post_processor_jobs")
    }
    assert not found


@pytest.mark.parametrize(
    ("source", "is_found"),
    [
        ("x = \"UPDATE post_processor_jobs SET status = 'failed'\"", True),
        ('x = f"""update\n  post_processor_jobs j SET {y}"""', True),
        ('"""UPDATE post_processor_jobs is what this module never does."""', False),
        ('x = "SELECT 1 FROM post_processor_jobs FOR UPDATE"', False),
    ],
)
def test_the_look_at_statements_sees_what_it_should(tmp_path, source, is_found):
    path = tmp_path / "module.py"
    path.write_text(source)
    assert any(_WRITES_JOBS.search(text) for text, _ in strings(path)) is is_found


def test_the_domain_knows_no_clock():
    found = {
        f"{name}:{line}"
        for name, path in OURS.items()
        if name.startswith("domain/")
        for holder, attribute, line in calls(path)
        if (holder.rpartition(".")[2], attribute) in CLOCKS
    }
    assert not found


def test_the_domain_imports_no_clock_and_no_chance():
    banned = {"time", "random", "secrets"}
    found = {
        f"{name}: {module}"
        for name, path in OURS.items()
        if name.startswith("domain/")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for module in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        if module.partition(".")[0] in banned
    }
    assert not found


def test_no_file_grows_beyond_its_limit():
    lines = {
        name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in OURS.items()
    }
    limits = {name: LONGER.get(name, (MOST_LINES, ""))[0] for name in lines}
    assert {name: n for name, n in lines.items() if n > limits[name]} == {}


def test_a_file_that_shrank_needs_no_exception_any_more():
    lines = {name: len(MODULES[name].read_text(encoding="utf-8").splitlines()) for name in LONGER}
    assert {name: n for name, n in lines.items() if n <= MOST_LINES} == {}


def test_every_module_says_what_it_is_for():
    silent = {
        name
        for name, path in OURS.items()
        if (tree := ast.parse(path.read_text(encoding="utf-8"))).body
        and not ast.get_docstring(tree)
    }
    assert not silent


def test_init_files_are_empty_or_say_what_they_offer():
    long = {
        name
        for name, path in OURS.items()
        if path.name == "__init__.py" and len(path.read_text(encoding="utf-8").splitlines()) > 20
    }
    assert not long
