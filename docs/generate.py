# ruff: noqa: INP001  a program, not part of a package
"""Writes those parts of the documentation that say what the code says.

They stand between ``<!-- generated: NAME -->`` and ``<!-- end -->``, or are a whole file. Run it
after a change of settings, commands, messages, states or tables; a test fails while a page differs
from the code.

Usage: python docs/generate.py [--check]
"""

import json
import re
import runpy
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import typer.main
from pydantic import BaseModel, SecretStr
from sqlalchemy.dialects import postgresql

from ppworker.api import app as http
from ppworker.api.resources import accounts as api_accounts
from ppworker.api.resources import annotations as api_annotations
from ppworker.api.resources import api_keys, processor_fields
from ppworker.api.resources import applications as api_applications
from ppworker.api.resources import blobs as api_blobs
from ppworker.api.resources import bulk as api_bulk
from ppworker.api.resources import datasets as api_datasets
from ppworker.api.resources import inferences as api_inferences
from ppworker.api.resources import item_states as api_item_states
from ppworker.api.resources import items as api_items
from ppworker.api.resources import jobs as api_jobs
from ppworker.api.resources import labels as api_labels
from ppworker.api.resources import model_inferences as api_model_inferences
from ppworker.api.resources import model_versions as api_model_versions
from ppworker.api.resources import models as api_models
from ppworker.api.resources import operations as api_operations
from ppworker.api.resources import reviews as api_reviews
from ppworker.api.resources import shares as api_shares
from ppworker.api.resources import splits as api_splits
from ppworker.api.resources import versions as api_versions
from ppworker.cli import program
from ppworker.domain.job import EDGES, LIVE, TERMINAL, Status
from ppworker.formats import coco, csv_table, folders, label_studio, skips, spacy_ner, yolo
from ppworker.metric_names import METRICS
from ppworker.settings import Settings
from ppworker.store import tables

DOCS = Path(__file__).parent
_ASYNCAPI = runpy.run_path(str(DOCS / "asyncapi.py"))
_SDK = runpy.run_path(str(DOCS / "sdk.py"))
_PROMISES = runpy.run_path(str(DOCS / "promises.py"))
_BLOCK = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_OPEN = re.compile(r"<!-- generated: ")

CAUSES = {
    "planned": "an upload or a backfill made it",
    "claimed": "a worker took it: one attempt more, one token more",
    "finished": "the model answered and the answer was written",
    "transient_error": "a retryable error; waits with back-off",
    "snoozed": "the model asked to wait, failed a probe, or took all the time of its batch; "
    "the attempt is refunded",
    "released": "its worker was stopped; the attempt is refunded",
    "rescued": "its lease or deadline was over; the attempt counts",
    "suspected": "the same in a model of its worker's own process, with its last attempt: "
    "refunded, to be tried in a process apart",
    "input_changed": "the item changed meanwhile; fresh budget, answer dropped",
    "exhausted": "the last allowed attempt failed",
    "permanent_error": "an error that no repetition mends",
    "crashed": "the process of its model died with it alone too often",
    "cancelled": "a person ended it",
    "predecessor_failed": "an earlier job failed whose post-processor says stop",
    "retried": "a person retried it: fresh budget, same row",
}
"""What each cause means; a cause without a sentence stops the program."""


def state_diagram() -> str:
    """The states and edges of a job, as a picture and as a table."""
    lines = ["```mermaid", "stateDiagram-v2"]
    for (source, to), causes in EDGES.items():
        lines.append(f"    {source or '[*]'} --> {to}: {', '.join(causes)}")
    # No edge leads from here on but a retry, so this is where a job rests.
    lines += [f"    {status} --> [*]" for status in TERMINAL]
    lines += ["```", ""]
    rows = [
        (source or "(none)", to, f"`{cause}`", CAUSES[cause])
        for (source, to), causes in EDGES.items()
        for cause in causes
    ]
    lines += _table(("from", "to", "cause", "what happened"), rows)
    live, over = (", ".join(f"`{s}`" for s in group) for group in (LIVE, TERMINAL))
    if set(Status) != {*LIVE, *TERMINAL}:
        raise SystemExit("a status is neither live nor over")
    lines += ["", f"Live: {live}. Over: {over}."]
    return "\n".join(lines)


def settings_table() -> str:
    """Every setting: its variable, default and meaning."""
    rows = []
    for name, about in Settings.model_fields.items():
        default = about.default
        shown = "" if default is None else f"`{_shown(default)}`"
        if isinstance(default, SecretStr):
            raise SystemExit(f"{name}: a secret has a default")
        rows.append((f"`PPWORKER_{name.upper()}`", shown, _bounds(about), about.description or ""))
    return "\n".join(_table(("variable", "default", "allowed", "meaning"), rows))


def _bounds(about: Any) -> str:
    found = {}
    for rule in [*about.metadata, *_inner_rules(about.annotation)]:
        for name in ("ge", "le", "gt", "lt"):
            if (value := getattr(rule, name, None)) is not None:
                found[name] = value
    words = {"ge": "at least", "le": "at most", "gt": "more than", "lt": "less than"}
    if found.keys() >= {"ge", "le"}:
        return f"{_number(found['ge'])} to {_number(found['le'])}"
    return ", ".join(f"{words[name]} {_number(value)}" for name, value in found.items())


def _inner_rules(annotation: Any) -> list[Any]:
    """Rules of ``Annotated[X, rule] | None``, which pydantic leaves where they are written."""
    return [
        part
        for option in getattr(annotation, "__args__", ())
        for rule in getattr(option, "__metadata__", ())
        for part in [rule, *getattr(rule, "metadata", ())]
    ]


def command_reference() -> str:
    """Every command with its arguments and options."""
    sections: list[str] = []
    for name in program._COMMANDS:  # noqa: SLF001  the list of commands, which nothing else needs
        root: Any = typer.main.get_command(program._app([name]))  # noqa: SLF001
        sections += _commands(root.commands[name], f"ppworker {name}")
    return "\n".join(sections).rstrip()


def _commands(command: Any, path: str) -> Iterator[str]:
    children = getattr(command, "commands", None)
    if children:
        yield f"## {path}\n"
        yield f"{_sentence(command.help)}\n"
        for name, child in children.items():
            yield from _one_command(child, f"{path} {name}", level="###")
        return
    yield from _one_command(command, path, level="##")


def _one_command(command: Any, path: str, *, level: str) -> Iterator[str]:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option"]
    usage = " ".join([path, "[OPTIONS]", *(_metavar(a) for a in arguments)])
    yield f"{level} {path}\n"
    yield f"{_sentence(command.help)}\n"
    yield f"```text\n{usage}\n```\n"
    rows = [(f"`{_metavar(a)}`", a.help or "") for a in arguments if a.help]
    rows += [(_flags(o), _meaning(o)) for o in options if not _is_everywhere(o)]
    if rows:
        yield "\n".join(_table(("", ""), rows)) + "\n"


def _is_everywhere(option: Any) -> bool:
    """Whether every command has it, so that the page says so once."""
    return bool({"--help", "--json", "--data-dir"} & set(option.opts))


def _sentence(text: str | None) -> str:
    return " ".join((text or "").split())


def _metavar(argument: Any) -> str:
    shown = str(argument.metavar or argument.name.upper())
    return shown if argument.required or shown.startswith("[") else f"[{shown}]"


def _flags(option: Any) -> str:
    flags = ", ".join([*option.opts, *option.secondary_opts])
    if option.is_flag:
        return f"`{flags}`"
    return f"`{flags} {option.metavar or 'VALUE'}`"


def _meaning(option: Any) -> str:
    needed = "Required." if option.required else ""
    return " ".join(part for part in (option.help, needed, _default(option)) if part)


def _default(option: Any) -> str:
    default = option.default
    if isinstance(default, bool | list | tuple) or default in {None, ""} or callable(default):
        return ""
    return f"Default: `{_shown(default)}`."


def _shown(value: object) -> str:
    return _number(value) if isinstance(value, float) else str(value)


def _number(value: float) -> str:
    """A number as it may be typed: whole ones with all their digits."""
    return str(int(value)) if float(value).is_integer() else f"{value:g}"


def table_reference() -> str:
    """Every table with its columns."""
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy leaves it untyped
    lines: list[str] = []
    for table in tables.metadata.tables.values():
        lines += [f"## {table.name}", ""]
        rows = [
            (f"`{c.name}`", c.type.compile(dialect=dialect).lower(), _column_facts(c))
            for c in table.columns
        ]
        lines += [*_table(("column", "type", ""), rows), ""]
    return "\n".join(lines).rstrip()


def metrics_tables() -> str:
    """Every metric, a table for each place its figures come from."""
    heads = {
        "process": "What the processes did",
        "vitals": "What the processes are doing",
        "database": "What is",
    }
    lines: list[str] = []
    for source, head in heads.items():
        rows = [
            (f"`{about.name}`", about.kind, ", ".join(f"`{n}`" for n in about.labels), about.text)
            for about in METRICS
            if about.source == source
        ]
        lines += [f"## {head}", "", *_table(("metric", "kind", "labels", "meaning"), rows), ""]
    return "\n".join(lines).rstrip()


def _column_facts(column: sa.Column[Any]) -> str:
    facts = []
    if column.primary_key:
        facts.append("key")
    facts += [f"of `{key.column.table.name}`" for key in column.foreign_keys]
    if not column.nullable and not column.primary_key:
        facts.append("not null")
    if column.unique:
        facts.append("unique")
    return ", ".join(dict.fromkeys(facts))


def _table(heads: tuple[str, ...], rows: list[tuple[Any, ...]]) -> list[str]:
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    lines += [
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows
    ]
    return lines


def route_table() -> str:
    """Every route of the HTTP API."""
    rows = [
        (each.method, f"`{each.path.removeprefix(http.PREFIX)}`", _sentence(each.summary))
        for each in http.routes()
    ]
    return "\n".join(_table(("", "route", ""), rows))


SHAPES: dict[str, type[BaseModel]] = {
    "Dataset": api_datasets.DatasetAnswer,
    "Version": api_versions.VersionAnswer,
    "Split": api_splits.SplitAnswer,
    "Label": api_labels.LabelAnswer,
    "Label stat": api_labels.LabelStat,
    "Item": api_items.ItemAnswer,
    "Item's job status": api_items.JobStatus,
    "Item state": api_item_states.ItemStateAnswer,
    "Annotation": api_annotations.AnnotationAnswer,
    "Review": api_reviews.ReviewAnswer,
    "Post-processor": processor_fields.ProcessorAnswer,
    "Job": api_jobs.JobDetailsAnswer,
    "Inference": api_inferences.InferenceAnswer,
    "Inference item": api_inferences.InferenceItemAnswer,
    "Kept inference": api_model_inferences.ModelInferenceAnswer,
    "Kept inference's item": api_model_inferences.ModelInferenceItem,
    "Model": api_models.ModelAnswer,
    "Model version": api_model_versions.ModelVersionAnswer,
    "Model version's metric": api_model_versions.MetricAnswer,
    "Application": api_applications.ApplicationAnswer,
    "Operation": api_operations.OperationAnswer,
    "Items made at once": api_bulk.BulkAnswer,
    "Login": api_accounts.LoginAnswer,
    "Who asks": api_accounts.ContextAnswer,
    "API key": api_keys.KeyAnswer,
    "Share": api_shares.ShareAnswer,
    "Shared with": api_shares.SharedWith,
    "Stored file": api_blobs.BlobAnswer,
}
"""What answers are made of, by the name that people call it."""


def shape_tables() -> str:
    """Every field of every answer with its type."""
    names = {kind.__name__: name for name, kind in SHAPES.items()}
    lines: list[str] = []
    for name, kind in SHAPES.items():
        schema = kind.model_json_schema(mode="serialization")
        rows = [(f"`{f}`", _json_type(about, names)) for f, about in schema["properties"].items()]
        lines += [f"### {name}", "", *_table(("field", "type"), rows), ""]
    return "\n".join(lines).rstrip()


def _json_type(about: dict[str, Any], names: dict[str, str]) -> str:
    if "$ref" in about:
        found = about["$ref"].rpartition("/")[2]
        return names.get(found, found).lower()
    if "anyOf" in about:
        return " or ".join(_json_type(each, names) for each in about["anyOf"])
    if "enum" in about:
        return ", ".join(f"`{each}`" for each in about["enum"])
    if about.get("type") == "array":
        return f"list of {_json_type(about['items'], names)}"
    if about.get("format") == "date-time":
        return "time"
    return str(about.get("type", "any"))


def skips_table() -> str:
    """Every reason for which an import leaves something out."""
    rows = [(f"`{word}`", said) for word, said in sorted(skips.SKIPS.items())]
    return "\n".join(_table(("reason", "what is skipped"), rows))


def losses_table(losses: Mapping[str, str]) -> str:
    """Everything that a format cannot hold."""
    rows = [(f"`{word}`", said) for word, said in sorted(losses.items())]
    return "\n".join(_table(("loss", "what the archive does not hold"), rows))


PARTS: dict[str, Callable[[], str]] = {
    "commands": command_reference,
    "job-states": state_diagram,
    "losses-coco": lambda: losses_table(coco.LOSSES),
    "losses-csv": lambda: losses_table(csv_table.LOSSES),
    "losses-folders": lambda: losses_table(folders.LOSSES),
    "losses-labelstudio": lambda: losses_table(label_studio.LOSSES),
    "losses-spacy-ner": lambda: losses_table(spacy_ner.LOSSES),
    "losses-yolo": lambda: losses_table(yolo.LOSSES),
    "messages": _ASYNCAPI["tables"],
    "metrics": metrics_tables,
    "promises": _PROMISES["table"],
    "routes": route_table,
    "sdk-bugs": _SDK["bugs_table"],
    "sdk-excuses": _SDK["excuses_table"],
    "sdk-methods": _SDK["methods_table"],
    "settings": settings_table,
    "shapes": shape_tables,
    "skips": skips_table,
    "tables": table_reference,
}


def openapi() -> str:
    """The published schema of the HTTP API."""
    return json.dumps(http.schema(), indent=1, ensure_ascii=False) + "\n"


FILES: dict[str, Callable[[], str]] = {
    _ASYNCAPI["PATH"]: _ASYNCAPI["text"],
    "reference/openapi.json": openapi,
    **{path: partial(str, content) for path, content in _PROMISES["files"]().items()},
}
"""Files that are generated as a whole."""


def rewritten(text: str) -> str:
    """A page with its generated parts as they should be.

    Raises:
        ValueError: a part is unknown or never ends.
    """

    def write(found: re.Match[str]) -> str:
        if found[2] not in PARTS:
            raise ValueError(f"nothing generates {found[2]!r}")
        return f"{found[1]}{PARTS[found[2]]()}\n{found[3]}"

    new, count = _BLOCK.subn(write, text)
    if count != len(_OPEN.findall(text)):
        raise ValueError("a generated part has no end")
    return new


def main() -> int:
    """Write what differs; with ``--check`` only say so. Returns the exit code."""
    code = 0
    wanted = {
        page: rewritten(page.read_text(encoding="utf-8")) for page in sorted(DOCS.rglob("*.md"))
    } | {DOCS / path: write() for path, write in FILES.items()}
    for page, new in wanted.items():
        if page.exists() and page.read_text(encoding="utf-8") == new:
            continue
        if "--check" in sys.argv[1:]:
            sys.stdout.write(f"{page}: differs from the code; run `make docs`\n")
            code = 1
        else:
            page.write_text(new, encoding="utf-8")
            sys.stdout.write(f"{page}: written\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
