"""Watches the demo's jobs, shows what came of them, and checks it."""

import shutil
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from demo_data import Address, Made
from demo_speech import wrong_words
from ppworker import embedded, settings, wiring
from ppworker.store import annotations, datasets, items, job_operations, labels, overview, stats

USER = "local"
"""The user that the command line acts as."""
SERVERS = ("redis-server", "postgres", "psql", "initdb", "pg_ctl", "pg_isready")
"""Programs that a system may have, and that the embedded default must not need."""
_EVERYTHING = 10_000
_LOOK_S = 0.25
_LINE_S = 3.0
"""Seconds between lines of progress where nobody watches a terminal."""
_MOST_WRONG = 0.35
"""Highest word error rate of the speech model, over all recordings."""
_QUICK_S = 15.0
"""Longest that a second start may take, on a slow machine too."""

_console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """An item with what was said about it."""

    name: str
    media_type: str
    sha256: str
    text: str
    width: int | None
    height: int | None
    page_count: int | None
    duration_s: float | None
    annotations: Sequence[Any]

    def said_by(self, post_processor: str) -> list[Any]:
        """Annotations of one post-processor; spans and segments in their order."""
        own = [each for each in self.annotations if each.post_processor == post_processor]
        return sorted(own, key=lambda each: (each.geometry or {}).get("start", 0))


@dataclass(frozen=True, slots=True)
class Check:
    """Something that should hold, and whether it does."""

    what: str
    holds: bool
    detail: str = ""


class Look:
    """Reads the data of a folder, holding its servers meanwhile."""

    def __init__(self, folder: Path, dataset: str) -> None:
        self._servers = embedded.acquire(folder)
        self._db = wiring.open_database(
            settings.load(database_url=self._servers.database_url), name="ppworker demo"
        )
        self._dataset = dataset

    def __enter__(self) -> Self:
        with self._db.begin() as tx:
            self._user = datasets.ensure_user(tx, USER)
            self._dataset_id = datasets.get_dataset(tx, self._user, self._dataset).id
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._db.close()
        self._servers.close()

    def processors(self) -> list[overview.ProcessorStatus]:
        """Every post-processor with its jobs by status."""
        with self._db.begin() as tx:
            return overview.read_processors(tx)[0]

    def jobs(self, post_processor: str | None = None) -> list[Any]:
        """Jobs by id: of one post-processor, or of all."""
        with self._db.begin() as tx:
            found = job_operations.list_jobs(
                tx, self._user, dataset_id=self._dataset_id, limit=_EVERYTHING
            )
        return [job for job in found if post_processor in {None, job.post_processor}]

    def items(self, split: str) -> list[Item]:
        """Every item of a split with its annotations."""
        with self._db.begin() as tx:
            split_id = datasets.get_split(tx, self._user, split).id
            rows = items.list_items(
                tx, split_id, after=None, limit=_EVERYTHING, shown=_EVERYTHING * 100
            )
            return [
                Item(
                    name=row.name,
                    media_type=row.media_type,
                    sha256=row.content_sha256,
                    text=row.text or "",
                    width=row.width,
                    height=row.height,
                    page_count=row.page_count,
                    duration_s=row.duration_s,
                    annotations=annotations.list_annotations(tx, row.id),
                )
                for row in rows
            ]

    def stats(self, split: str) -> list[tuple[str, int, int]]:
        """Label stats as (label or bucket, annotations, items)."""
        return self._stats(split, stats.read_stats)

    def recount(self, split: str) -> list[tuple[str, int, int]]:
        """The same, counted anew from the annotations."""
        return self._stats(split, stats.recount)

    def _stats(self, split: str, read: Any) -> list[tuple[str, int, int]]:
        with self._db.begin() as tx:
            found = datasets.get_split(tx, self._user, split)
            names = {each.id: each.name for each in labels.list_labels(tx, found.version_id)}
            rows = read(tx, [found.id])
        return sorted(
            (names.get(row.label_id, f"({row.bucket})"), row.annotation_count, row.item_count)
            for row in rows
        )


def say(*lines: str) -> None:
    """Print lines as they are."""
    for line in lines:
        _console.print(line, markup=False, soft_wrap=True)


def title(text: str) -> None:
    """Print a heading."""
    _console.print(f"\n[bold]{text}[/bold]")


def watch(look: Look, *, patience_s: float) -> None:
    """Show the progress of every post-processor until all its jobs are over.

    Raises:
        SystemExit: they were not over in time.
    """
    by = time.monotonic() + patience_s
    show = _bars if _console.is_terminal else _lines
    for found in show(look):
        if not any(each.pending or each.processing for each in found):
            return
        if time.monotonic() > by:
            raise SystemExit("the jobs are not over in time; up.log may tell why")
        time.sleep(_LOOK_S)


def _bars(look: Look) -> Iterator[list[overview.ProcessorStatus]]:
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=_console) as progress:
        found = look.processors()
        bars = {each.id: progress.add_task(each.name, figures="") for each in found}
        while True:
            for each in found:
                over = each.completed + each.failed
                total = over + each.pending + each.processing
                progress.update(
                    bars[each.id],
                    completed=over,
                    total=total,
                    figures=_figures(each),
                    visible=total > 0,
                )
            yield found
            found = look.processors()


def _lines(look: Look) -> Iterator[list[overview.ProcessorStatus]]:
    started = time.monotonic()
    next_at = started
    while True:
        found = look.processors()
        is_over = not any(each.pending or each.processing for each in found)
        if is_over or time.monotonic() >= next_at:
            next_at = time.monotonic() + _LINE_S
            figures = "; ".join(f"{each.name}: {_figures(each)}" for each in found if _any(each))
            say(f"{time.monotonic() - started:5.1f} s  {figures}")
        yield found


def _any(status: overview.ProcessorStatus) -> bool:
    return bool(status.completed + status.failed + status.pending + status.processing)


def _figures(status: overview.ProcessorStatus) -> str:
    waiting = status.pending + status.processing
    return f"{status.completed} completed, {status.failed} failed, {waiting} pending"


def show(look: Look, split: str) -> None:
    """Print what came of the jobs: figures, examples, label stats, and what failed and why."""
    jobs = look.jobs()
    figures = Table("post-processor", title="jobs", title_justify="left")
    for column in ("completed", "failed", "attempts", "p50 seconds", "dropped"):
        figures.add_column(column, justify="right")
    for name in dict.fromkeys(job.post_processor for job in jobs):
        figures.add_row(name, *_row([job for job in jobs if job.post_processor == name]))
    _console.print(figures)
    _show_examples(look.items(split))
    counts = Table("label", title=f"label stats of {split}", title_justify="left")
    for column in ("annotations", "items", "recounted"):
        counts.add_column(column, justify="right")
    recounted = {label: (count, item_count) for label, count, item_count in look.recount(split)}
    for label, count, item_count in look.stats(split):
        again = recounted.get(label, (0, 0))
        counts.add_row(label, str(count), str(item_count), f"{again[0]} on {again[1]}")
    _console.print(counts)
    failures = Table("item", "post-processor", "reason", "error", title="failed jobs")
    for job in jobs:
        if job.status == "failed":
            failures.add_row(job.item, job.post_processor, job.reason, job.error)
    _console.print(failures)


def _row(jobs: Sequence[Any]) -> list[str]:
    by_status = Counter(job.status for job in jobs)
    seconds = [job.seconds for job in jobs if job.status == "completed"]
    dropped: Counter[str] = Counter()
    for job in jobs:
        dropped.update(job.dropped or {})
    return [
        str(by_status["completed"]),
        str(by_status["failed"]),
        str(sum(job.attempts for job in jobs)),
        f"{statistics.median(seconds):.3f}" if seconds else "",
        ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items())),
    ]


def _show_examples(found: Sequence[Item]) -> None:
    """Print one annotation of each kind, and the text of its item."""
    examples = Table("what", "of", "example", title="examples", title_justify="left")
    kinds = (("class", ".py"), ("polygon", ".jpg"), ("span", ".docx"), ("segment", ".mp3"))
    for kind, ending in kinds:
        for item in found:
            said = [each for each in item.annotations if each.kind == kind]
            if item.name.endswith(ending) and said:
                if item.text:
                    examples.add_row("text", item.name, item.text)
                examples.add_row(kind, item.name, _described(said[-1]))
                break
    _console.print(examples)


def _described(annotation: Any) -> str:
    quoted = f" '{annotation.text}'" if annotation.text else ""
    score = "" if annotation.score is None else f", score {annotation.score:.2f}"
    place = f" at {annotation.coordinates}" if annotation.coordinates else ""
    return f"{annotation.label}{quoted}{place}{score} ({annotation.post_processor})"


def check_data(
    look: Look, split: str, made: Sequence[Made], address_labels: Sequence[str]
) -> list[Check]:
    """Compare what is in the database with what is known of the files.

    Args:
        look: the database.
        split: where the files went.
        made: the files, those that went elsewhere too.
        address_labels: labels of the parts of an address, in the order in which it is written.
    """
    found = {item.name: item for item in look.items(split)}
    pairs = [(each, found[each.path.name]) for each in made if each.path.name in found]
    return [
        *_check_input(pairs),
        *_check_jobs(look.jobs(), pairs),
        *_check_pages([(m, item) for m, item in pairs if m.kind == "page"]),
        _check_documents([(m, item) for m, item in pairs if m.path.suffix == ".docx"]),
        *_check_speech([(m, item) for m, item in pairs if m.kind == "speech"]),
        *_check_addresses([(m, item) for m, item in pairs if m.addresses], address_labels),
        _check_quotes(list(found.values())),
        *_check_stats(look, split, [m for m, _ in pairs], address_labels),
    ]


def _check_input(pairs: Sequence[tuple[Made, Item]]) -> list[Check]:
    hashes = {item.sha256 for _, item in pairs}
    types = {item.media_type for _, item in pairs}
    kinds = Counter(m.kind for m, _ in pairs)
    return [
        Check("60 different items or more", len(hashes) >= 60, f"{len(hashes)}"),  # noqa: PLR2004
        Check("five media types or more", len(types) >= 5, ", ".join(sorted(types))),  # noqa: PLR2004
        Check(
            "ten or more each of pages, letters, and source or data files",
            min(kinds["page"], kinds["letter"], kinds["source"]) >= 10,  # noqa: PLR2004
            ", ".join(f"{count} {kind}" for kind, count in kinds.items()),
        ),
    ]


def _check_jobs(jobs: Sequence[Any], pairs: Sequence[tuple[Made, Item]]) -> list[Check]:
    broken = {m.path.name for m, _ in pairs if m.kind == "broken"}
    failed = [job for job in jobs if job.status == "failed"]
    errors = {job.item: job.error for job in reversed(failed)}
    over_at = {job.item_id: job.completed_at for job in jobs if job.post_processor == "page text"}
    chained = [j for j in jobs if j.post_processor == "addresses" and j.item_id in over_at]
    live = [job for job in jobs if job.status not in {"completed", "failed"}]
    return [
        Check("every job is over", bool(jobs) and not live, f"{len(jobs)} jobs"),
        Check("only broken files failed, and all of them", {j.item for j in failed} == broken),
        Check(
            "the image cut short says that it is broken",
            "broken or cut short" in errors.get("cut-short.png", ""),
        ),
        Check("the empty file says that it is empty", "empty" in errors.get("empty.bin", "")),
        Check(
            "the recording cut short says how much of it is there",
            "cut short: 13.6 s of 27.2 s" in errors.get("cut-short.mp3", ""),
        ),
        Check("the old .doc says how to save it", "save it as .docx" in errors.get("old.doc", "")),
        Check(
            "addresses were looked for after the text of their page was there",
            bool(chained) and all(j.started_at >= over_at[j.item_id] for j in chained),
            f"{len(chained)} pages",
        ),
    ]


def _check_pages(pairs: Sequence[tuple[Made, Item]]) -> list[Check]:
    kinds = {"jpg": "jpeg"}
    read = [m for m, item in pairs if item.text.split() == " ".join(m.lines).split()]
    boxed = [m for m, item in pairs if _all_inside(item, item.said_by("text boxes"))]
    known = [
        m
        for m, item in pairs
        if [each.label for each in item.said_by("file kinds")]
        == [kinds.get(m.path.suffix[1:], m.path.suffix[1:])]
    ]
    return [
        Check("the text of every page is what was printed on it", *_all(read, pairs)),
        Check("every page has boxes of text, all inside the upright page", *_all(boxed, pairs)),
        Check("every page's kind of file is told right", *_all(known, pairs)),
        *_check_page_counts(pairs),
    ]


def _check_page_counts(pairs: Sequence[tuple[Made, Item]]) -> list[Check]:
    several = [(m, item) for m, item in pairs if m.path.suffix in {".pdf", ".tiff"}]
    counted = [m for m, item in several if item.page_count == len(m.addresses)]
    read = [m for m, item in several if m.path.name == "page-with-letters.pdf" and item.text]
    return [
        Check("the pages of every PDF and TIFF were counted", *_all(counted, several)),
        Check("a PDF of two pages with real letters is among those that were read", bool(read)),
    ]


def _check_documents(pairs: Sequence[tuple[Made, Item]]) -> Check:
    read = [m for m, item in pairs if item.text == "\n".join(m.lines)]
    return Check("the text of every Word document is what was written in it", *_all(read, pairs))


def _check_speech(pairs: Sequence[tuple[Made, Item]]) -> list[Check]:
    counts = [wrong_words(m.lines[0], item.text) for m, item in pairs]
    said = sum(words for _, words in counts)
    rate = sum(wrong for wrong, _ in counts) / said if said else 1.0
    placed = [m for m, item in pairs if _in_order_inside(item)]
    songs = [item for _, item in pairs if item.media_type == "audio/mpeg" and item.text]
    return [
        Check("speech became text, few of its words wrong", rate <= _MOST_WRONG,
              f"word error rate {rate:.2f} of {said} words in {len(pairs)} recordings"),
        Check("an MP3 is among the recordings", bool(songs)),
        Check("segments of speech are in order, inside the duration", *_all(placed, pairs)),
    ]  # fmt: skip


def _in_order_inside(item: Item) -> bool:
    places = [each.geometry for each in item.said_by("speech")]
    times = [second for place in places for second in (place["start"], place["end"])]
    inside = bool(times) and times[0] >= 0 and times[-1] <= (item.duration_s or 0)
    return inside and times == sorted(times)


def _all_inside(item: Item, boxes: Sequence[Any]) -> bool:
    """Whether there are polygons, and none leaves an image whose size is known."""
    points = [point for box in boxes for point in box.geometry["points"]]
    if item.width is None or item.height is None:
        return bool(points)
    return bool(points) and all(0 <= x <= item.width and 0 <= y <= item.height for x, y in points)


def _check_addresses(
    pairs: Sequence[tuple[Made, Item]], address_labels: Sequence[str]
) -> list[Check]:
    exact = []
    for made, item in pairs:
        spans = [(each.label, each.text) for each in item.said_by("addresses")]
        wanted = [
            pair for a in made.addresses for pair in zip(address_labels, _parts(a), strict=True)
        ]
        if spans == wanted:
            exact.append(made)
    count = sum(len(made.addresses) for made, _ in pairs)
    holds, detail = _all(exact, pairs)
    return [
        Check("the addresses of every page and letter were found, and nothing else", holds,
              f"{count} addresses; {detail}")
    ]  # fmt: skip


def _parts(address: Address) -> tuple[str, ...]:
    """In the order in which they are written."""
    return (
        *(address.number, address.street, address.street_type),
        *(address.city, address.state, address.zip_code),
    )


def _check_quotes(found: Sequence[Item]) -> Check:
    spans = [(item, each) for item in found for each in item.annotations if each.kind == "span"]
    wrong = [
        each
        for item, each in spans
        if item.text[each.geometry["start"] : each.geometry["end"]] != each.text
    ]
    return Check("every span quotes its item's text", bool(spans) and not wrong, f"{len(spans)}")


def _check_stats(
    look: Look, split: str, made: Sequence[Made], address_labels: Sequence[str]
) -> list[Check]:
    """Of what was composed it is known what the stats must be."""
    found = look.stats(split)
    addressed = [each for each in made if each.addresses]
    count = sum(len(each.addresses) for each in addressed)
    wanted = {(label, count, len(addressed)) for label in address_labels}
    return [
        Check("label stats are those counted anew", bool(found) and found == look.recount(split)),
        Check(
            "label stats count each part of each address once",
            wanted == {row for row in found if row[0].startswith("address ")},
            f"{count} on {len(addressed)} items",
        ),
    ]


def _all(those: Sequence[Made], pairs: Sequence[tuple[Made, Item]]) -> tuple[bool, str]:
    missing = [m.path.name for m, _ in pairs if m not in those]
    detail = f"{len(those)} of {len(pairs)}" + (f", not {', '.join(missing)}" if missing else "")
    return bool(pairs) and not missing, detail


def check_stop(folder: Path, exit_code: int | None) -> list[Check]:
    """Whether all of it stopped, and the servers were those of the wheels."""
    on_path = [name for name in SERVERS if shutil.which(name)]
    left = processes_of(folder)
    return [
        Check("no server of the system was needed: none is on the PATH", not on_path),
        Check("workers and servers stopped when they were told to", exit_code == 0),
        Check("no process is left over", not left, "; ".join(left)),
    ]


def check_second_start(
    folder: Path, dataset: str, split: str, before: Sequence[tuple[str, int, int]]
) -> list[Check]:
    """Whether the servers come up again soon, with the data in them."""
    started = time.monotonic()
    with Look(folder, dataset) as look:
        after = look.stats(split)
        seconds = time.monotonic() - started
    return [
        Check("a second start is quick", seconds < _QUICK_S, f"{seconds:.1f} s"),
        Check("after it the label stats are as before", after == list(before)),
        Check("after it, too, no process is left over", not processes_of(folder)),
    ]


def processes_of(folder: Path) -> list[str]:
    """Workers and servers of a data folder that run now; none where there is no /proc."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended while we looked, or is somebody else's
            name = (entry / "comm").read_text().strip()
            command = (entry / "cmdline").read_bytes().split(b"\0")
            is_server = name in SERVERS and (entry / "cwd").resolve().is_relative_to(folder)
            is_ours = b"-m" in command and any(word.startswith(b"ppworker") for word in command)
            variable = f"PPWORKER_DATA_DIR={folder}".encode()
            if is_server or (
                is_ours
                and (
                    str(folder).encode() in command
                    or variable in (entry / "environ").read_bytes().split(b"\0")
                )
            ):
                found.append(f"{entry.name} {name}")
    return found


def verdict(checks: Sequence[Check]) -> int:
    """Print every check with a tick or a cross; the exit code."""
    title("Checked")
    for each in checks:
        mark = "[green]✓[/green]" if each.holds else "[bold red]✗[/bold red]"
        _console.print(f"{mark} {each.what}" + (f" [dim]({each.detail})[/dim]" * bool(each.detail)))
    unmet = [each for each in checks if not each.holds]
    if unmet:
        say("", f"{len(unmet)} of {len(checks)} do NOT hold:", *(f"  {c.what}" for c in unmet))
        return 1
    say("", f"all {len(checks)} hold")
    return 0


def look_further(folder: Path, split: str, dataset: str) -> None:
    """Print commands by which a person can go on."""
    program = Path(sys.executable).with_name("ppworker")
    shown = _below_here(program)
    data_dir = f"--data-dir {_below_here(folder)}"
    say(
        "",
        "Everything stays in the data folder. To look further:",
        f"  {shown} items list {split} {data_dir}",
        f"  {shown} jobs list {dataset} --status failed {data_dir}",
        f"  {shown} stats show {split} {data_dir}",
    )


def _below_here(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
