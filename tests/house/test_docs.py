"""The documentation says what the code says, and its links lead somewhere."""

import ast
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from ppworker import errors
from ppworker.api import app
from ppworker.domain.drop import Reason
from ppworker.domain.job import EDGES
from ppworker.domain.reapply import Skip
from ppworker.metric_names import BY_NAME
from ppworker.monitoring import router
from ppworker.pipeline.control.operation_steps import STEPS
from ppworker.runners import registry
from ppworker.runners.base import RawAnswer, RunnerInput

TOP = Path(__file__).parents[2]
DOCS = TOP / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), TOP / "README.md", TOP / "docker" / "README.md"]
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")
GENERATOR = runpy.run_path(str(DOCS / "generate.py"), run_name="generate")
PARTS_OF_A_DECISION = ["Status", "Context", "Decision", "Consequences", "Alternatives"]


def words_in_first_column(page):
    return re.findall(r"^\| `(\w+)` \|", (DOCS / page).read_text(), re.MULTILINE)


def reasons_in_the_code():
    """Every word that the package gives an error or outcome as its code."""
    found = set()
    for path in (TOP / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name, value = "", None
            if isinstance(node, ast.keyword):
                name, value = node.arg or "", node.value
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name, value = node.targets[0].id, node.value
            if name == "code":
                choices = [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]
                found |= {each.value for each in choices if isinstance(each, ast.Constant)}
    return {word for word in found if isinstance(word, str) and word}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_generated_parts_equal_the_code(page):
    text = page.read_text(encoding="utf-8")
    assert GENERATOR["rewritten"](text) == text, "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_links_lead_to_files(page):
    targets = [target for target in LINK.findall(page.read_text()) if "://" not in target]
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("part", GENERATOR["PARTS"])
def test_every_part_stands_on_one_page(part):
    assert sum(f"<!-- generated: {part} -->" in page.read_text() for page in PAGES) == 1


def test_what_the_issue_asks_for_is_generated():
    wanted = {"commands", "messages", "metrics", "settings"}
    assert GENERATOR["PARTS"].keys() >= wanted | {"job-states", "tables"}


@pytest.mark.parametrize("path", GENERATOR["FILES"])
def test_generated_files_equal_the_code(path):
    made = GENERATOR["FILES"][path]()
    assert (DOCS / path).read_text(encoding="utf-8") == made, "run `make docs`"


def test_the_generator_says_what_differs_and_mends_it(tmp_path):
    """On a copy, of which one page and one whole file were changed by hand."""
    shutil.copytree(DOCS, tmp_path / "docs")
    generate = [sys.executable, tmp_path / "docs" / "generate.py"]
    changed = [tmp_path / "docs" / "reference" / "settings.md", *GENERATOR["FILES"]]
    changed = [tmp_path / "docs" / each for each in changed]
    for path in changed:
        path.write_text(re.sub("PPWORKER_DATABASE_URL|key|<svg", "X", path.read_text()))
    said = subprocess.run([*generate, "--check"], capture_output=True, text=True, check=False)
    assert said.returncode == 1
    assert {line.partition(": ")[0] for line in said.stdout.splitlines()} == set(map(str, changed))
    assert subprocess.run(generate, capture_output=True, check=False).returncode == 0
    for path in changed:
        assert path.read_text() == (DOCS / path.relative_to(tmp_path / "docs")).read_text()


def test_the_health_page_has_every_endpoint_and_no_other():
    page = (DOCS / "reference" / "health.md").read_text()
    asked = set(re.findall(r"^\| `(/[a-z/]+)` \|", page, re.MULTILINE))
    assert asked == set(router.PATHS) - {"/metrics"}
    assert "`GET /metrics`" in (DOCS / "reference" / "metrics.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_endpoints_that_a_page_names_exist(page):
    named = set(re.findall(r"/health/[a-z]+|(?<![\w.])/metrics\b", page.read_text()))
    assert named <= set(router.PATHS)


def test_every_route_of_the_api_is_described_and_none_that_is_not():
    page = (DOCS / "reference" / "http.md").read_text()
    rows = re.findall(r"^\| ([A-Z]+) \| `(/[^`]*)` \|", page, re.MULTILINE)
    known = {(route.method, route.path.removeprefix(app.PREFIX)) for route in app.routes()}
    assert len(rows) == len(set(rows)) > 20
    assert set(rows) == known


def test_every_kind_of_operation_is_described():
    assert set(STEPS) <= set(words_in_first_column("reference/operations.md"))


def test_a_part_that_nothing_generates_or_that_never_ends_is_refused():
    for text in ("<!-- generated: nothing -->\n<!-- end -->", "<!-- generated: settings -->\n"):
        with pytest.raises(ValueError, match=r"nothing generates|no end"):
            GENERATOR["rewritten"](text)


def test_every_cause_of_an_edge_has_its_sentence_and_no_sentence_is_left_over():
    causes = {cause for causes in EDGES.values() for cause in causes}
    assert GENERATOR["CAUSES"].keys() == causes


def test_every_metric_is_explained_and_no_page_names_one_that_is_not():
    """Pages, alerts and the dashboard are written by hand."""
    page = (DOCS / "reference" / "metrics.md").read_text()
    assert set(re.findall(r"^\| `(ppworker_\w+)` \|", page, re.MULTILINE)) == set(BY_NAME)
    suffixes = ("_bucket", "_count", "_sum")
    for path in [*DOCS.rglob("*.md"), *(p for p in (TOP / "docker").rglob("*") if p.is_file())]:
        for name in re.findall(r"\bppworker_[a-z_]+[a-z]\b", path.read_text(encoding="utf-8")):
            base = next((name.removesuffix(s) for s in suffixes if name.endswith(s)), name)
            assert name in BY_NAME or base in BY_NAME, f"{path}: {name}"


def test_every_reason_of_a_drop_is_explained():
    explained = words_in_first_column("reference/errors-and-reasons.md")
    assert {str(reason) for reason in Reason} | {"label_deleted"} <= set(explained)


def test_every_reason_to_leave_a_kept_answer_alone_is_explained():
    page = (DOCS / "reference" / "errors-and-reasons.md").read_text()
    part = page.partition("## Why a kept answer was left alone")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", part, re.MULTILINE)) == {str(skip) for skip in Skip}


def test_every_reason_of_a_job_is_explained():
    explained = set(words_in_first_column("reference/errors-and-reasons.md"))
    found = reasons_in_the_code()
    assert len(found) > 10
    assert found - explained == set()


def test_every_error_of_the_tree_is_explained_or_is_a_parent_or_a_models():
    page = (DOCS / "reference" / "errors-and-reasons.md").read_text()
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, errors.PpworkerError):
            is_parent = bool(kind.__subclasses__()) and kind is not errors.StoreUnavailable
            if not is_parent and not issubclass(kind, errors.RunnerError):
                assert f"`{name}`" in page, name


def test_decisions_have_one_form_and_stand_in_the_index():
    folder = DOCS / "explanation" / "decisions"
    index = (folder / "README.md").read_text()
    pages = sorted(folder.glob("[0-9]*.md"))
    assert [page.name[:4] for page in pages] == [f"{n:04}" for n in range(1, len(pages) + 1)]
    for page in pages:
        text = page.read_text()
        assert re.findall(r"^## (.*)$", text, re.MULTILINE) == PARTS_OF_A_DECISION, page.name
        title = text.splitlines()[0].removeprefix(f"# {page.name[:4]}: ")
        assert f"| [{page.name[:4]}]({page.name}) | {title} |" in index


def test_every_page_is_named_in_the_index():
    index = (DOCS / "README.md").read_text()
    folder = DOCS / "explanation" / "decisions"
    pages = [page for page in DOCS.rglob("*.md") if folder not in page.parents]
    named = {(DOCS / target).resolve() for target in LINK.findall(index)}
    assert {page.resolve() for page in pages} - named == {(DOCS / "README.md").resolve()}


def test_the_changelog_names_every_migration():
    versions = (TOP / "src/ppworker/store/migrations/versions").glob("[0-9]*.py")
    changes = (TOP / "CHANGELOG.md").read_text()
    assert all(f"`{path.name[:4]}`" in changes for path in versions)


def test_the_status_of_the_readme_names_every_runner_there_is():
    offered = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["entry-points"]
    changes = (TOP / "CHANGELOG.md").read_text()
    assert all(f"`{name}`" in changes for name in offered["ppworker.runners"])


def test_the_runner_of_the_how_to_works(tmp_path, monkeypatch):
    page = (DOCS / "how-to" / "add-a-runner.md").read_text()
    (source,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (path,) = re.findall(r"--runner (\S+:\S+)", page)
    module = path.partition(":")[0]
    assert f"{module}.py" in page
    (tmp_path / f"{module}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        registry.check(path, {"least": 3})
        runner = registry.build(path, {"least": 3})
        runner.load()
        answers = runner.predict(
            [RunnerInput(key="1", text="HELLO to all of YOU I"), RunnerInput(key="2", text="  ")]
        )
        runner.close()
    finally:
        sys.modules.pop(module, None)
    first, second = answers
    assert isinstance(first, RawAnswer)
    assert [(p["start"], p["end"]) for p in first.raw["predictions"]] == [(0, 5), (16, 19)]
    assert isinstance(second, errors.UnreadableInput)
