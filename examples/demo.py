"""Carries a folder of files to text, annotations and label stats, with real models.

What an operator would type is run as the operator would run it (each line that begins with ``$``);
what is shown in between is read from the database. At the end everything that should have come of
it is checked: exit code 0 means that all of it did.

    python examples/demo.py [--data-dir DIR] [--seed N]
"""

import argparse
import importlib.util
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

import demo_data
import demo_results
from demo_operator import Operator, empty_folder, hide_servers_of_the_system
from demo_results import Check, Look

DATASET, NOW, LATER = "demo", "demo/train", "demo/test"
_PATIENCE_S = 600
_INTERRUPTED = 130

# Labels of the address model and what they are called in the dataset, with the prefix before them:
# AddressNumber becomes "address number".
ADDRESS_LABELS = {
    "AddressNumber": "number",
    "StreetName": "street",
    "StreetNamePostType": "street type",
    "PlaceName": "city",
    "StateName": "state",
    "ZipCode": "zip code",
}
ADDRESS_PREFIX = "address "


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--data-dir", type=Path, default=Path(".ppworker-demo"))
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end_in_order)
    try:
        checks = run(given.data_dir.absolute(), given.seed)
    except KeyboardInterrupt:
        demo_results.say("\nstopped; the servers and workers too")
        return _INTERRUPTED
    return demo_results.verdict(checks)


def run(folder: Path, seed: int) -> list[Check]:
    """The whole demo; returns what was checked."""
    started = time.monotonic()
    demo_results.title("1  The input")
    empty_folder(folder)
    hide_servers_of_the_system(folder)
    made = demo_data.make(folder / "input", seed=seed)
    model = _own_copy_of_address_model(folder / "model")
    demo_results.say(f"data folder {folder}", f"{len(made)} files, made from seed {seed}")

    demo_results.title("2  Servers and workers start")
    with Operator(folder) as operator:
        demo_results.say(f"ready after {operator.ready_after_s:.1f} s")
        demo_results.title("3  A dataset with six post-processors")
        _configure(operator, model)
        with Look(folder, DATASET) as look:
            demo_results.title("4  The files become items, the models work on them")
            folders = [folder / "input" / name for name in _folders_of_now(folder)]
            operator.run("items", "add", *map(str, folders), "--split", NOW)
            demo_results.watch(look, patience_s=_PATIENCE_S)

            demo_results.title("5  A model is away, and comes back")
            late = [each for each in made if each.kind == "later"]
            checks = _outage(operator, look, model, late)

            demo_results.title("6  What came of it")
            demo_results.show(look, NOW)
            names = [ADDRESS_PREFIX + name for name in ADDRESS_LABELS.values()]
            checks = [*demo_results.check_data(look, NOW, made, names), *checks]
            checks += [
                Check("label stats equal a recount", operator.succeeds("stats", "verify")),
                Check("every invariant of the data holds", operator.succeeds("verify")),
            ]
            stats = look.stats(NOW)

    demo_results.title("7  Everything stops, and starts again")
    checks += demo_results.check_stop(folder, operator.exit_code)
    checks += demo_results.check_second_start(folder, DATASET, NOW, stats)
    demo_results.say(f"the demo took {time.monotonic() - started:.0f} s")
    demo_results.look_further(folder, NOW, DATASET)
    return checks


def _configure(operator: Operator, model: Path) -> None:
    mapping = [f"--map={theirs}={ours}" for theirs, ours in ADDRESS_LABELS.items()]
    mapping.append(f"--prefix={ADDRESS_PREFIX}")
    extensions = ("txt", "doc", "docx", "png", "jpg", "tiff", "pdf")
    types = [f"--file-type={extension}" for extension in extensions]
    operator.run("datasets", "create", DATASET)
    for name, *options in (
        ("file kinds", "--runner=magika"),
        ("page text", "--runner=rapidocr", "--target=text"),
        ("text boxes", "--runner=rapidocr-boxes", "--threshold=0.8"),
        ("speech", "--runner=pocketsphinx", "--target=both"),
        # Order 1: it reads what "page text" (order 0) wrote, and the letters as they came.
        ("addresses", "--runner=usaddress", "--order=1", *types, *mapping),
    ):
        operator.run("processors", "create", DATASET, name, *options, "--split=train")
    operator.run(
        *("processors", "create", DATASET, "own model", "--runner=usaddress", "--split=test"),
        *(f"--config=model_path={model}", "--max-attempts=1"),
    )


def _outage(
    operator: Operator, look: Look, model: Path, late: Sequence[demo_data.Made]
) -> list[Check]:
    """Take the model of a post-processor away, see its job fail, put it back, retry."""
    away = model.with_suffix(".away")
    model.rename(away)
    operator.run("items", "add", *(str(each.path) for each in late), "--split", LATER)
    operator.run("jobs", "wait", "--dataset", DATASET, "--timeout", str(_PATIENCE_S))
    failed = look.jobs("own model")
    demo_results.say(*(f"{job.item}: {job.status}, {job.reason}: {job.error}" for job in failed))

    away.rename(model)
    operator.run("jobs", "retry", *(str(job.id) for job in failed))
    operator.run("jobs", "wait", "--dataset", DATASET, "--timeout", str(_PATIENCE_S))
    after = look.jobs("own model")
    demo_results.say(*(f"{job.item}: {job.status}, attempt {job.attempts}" for job in after))
    return [
        Check(
            "a job whose model is away fails, and says that the model is missing",
            bool(failed)
            and all(job.status == "failed" and job.reason == "unavailable" for job in failed)
            and all("missing" in job.error for job in failed),
        ),
        Check(
            "once the model is back, a retry completes that job",
            [job.id for job in after] == [job.id for job in failed]
            and all(job.status == "completed" for job in after),
        ),
    ]


def _folders_of_now(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "input").iterdir() if p.name != "later")


def _own_copy_of_address_model(folder: Path) -> Path:
    """The model file of the usaddress package, copied to where it can be taken away."""
    package = importlib.util.find_spec("usaddress")
    if package is None or package.origin is None:
        raise SystemExit("usaddress is not installed: pip install 'ppworker[models]'")
    folder.mkdir()
    copied = shutil.copy(Path(package.origin).with_name("usaddr.crfsuite"), folder)
    return Path(copied)


def _end_in_order(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001  signal's shape
    raise SystemExit(128 + number)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
