"""``chaos``: break a ppworker on purpose and see what it makes of it. For developers."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ppworker.cli import render
from ppworker.cli.session import Call, command
from ppworker.errors import Invalid

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ppworker.chaos.scenario import Scenario

_MOST_SCALE = 10.0
_QUICK_ONES = 2
"""Scenarios that run at once with ``--quick``."""


def register(root: typer.Typer, name: str, summary: str) -> None:
    """Add the command to the program."""
    command(root, name, summary=summary)(chaos)


def chaos(
    call: Call,
    scenarios: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SCENARIO...]", help="What to do; none means all."),
    ] = None,
    *,
    is_list: Annotated[bool, typer.Option("--list", help="Say which scenarios there are.")] = False,
    is_quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="All in minutes: small loads, two at once; speed is shown and not judged.",
        ),
    ] = False,
    keep: Annotated[
        str | None,
        typer.Option(
            "--keep",
            metavar="FOLDER",
            help="Leave servers' data and logs there.",
            show_default=False,
        ),
    ] = None,
    results: Annotated[
        str | None,
        typer.Option(
            "--results",
            metavar="FOLDER",
            help="Keep each result there, as NAME/COMMIT.json.",
            show_default=False,
        ),
    ] = None,
    is_resumed: Annotated[
        bool,
        typer.Option(
            "--resume", help="Leave out what has a result of this commit below --results."
        ),
    ] = False,
    scale: Annotated[
        float | None,
        typer.Option(
            "--scale", help="Factor for loads, times and repetitions.", show_default=False
        ),
    ] = None,
    repeat: Annotated[
        int | None,
        typer.Option(
            "--repeat", min=1, max=100, help="Runs; the median judges speed.", show_default=False
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of everything random.")] = 1,
) -> None:
    """Break a ppworker on purpose and measure what it makes of it. For developers.

    Each scenario runs on servers and worker processes of its own, below a temporary folder, and
    touches nothing else. Prints a JSON line per phase, run and result; exit 1 when a promise does
    not hold. Needs the extra `embedded`, no other.
    """
    from ppworker.chaos import scenario as kit  # noqa: PLC0415  help costs none of it
    from ppworker.chaos.results import has_result  # noqa: PLC0415
    from ppworker.chaos.scenarios import every  # noqa: PLC0415

    known = every()
    if is_list:
        _list(call, known.values())
        return
    unknown = [name for name in scenarios or () if name not in known]
    if unknown:
        raise Invalid(
            f"there is no scenario '{render.line(unknown[0])}'; there are {', '.join(known)}",
            field="SCENARIO",
        )
    if scale is not None and not 0 < scale <= _MOST_SCALE:
        raise Invalid(f"must be above 0 and at most {_MOST_SCALE:g}", field="--scale")
    if is_resumed and results is None:
        raise Invalid("needs --results, where results are looked for", field="--resume")
    wanted = [known[name] for name in scenarios or known]
    folder = None if results is None else Path(results)
    if is_resumed and folder is not None:
        wanted = [each for each in wanted if not has_result(folder, each.name)]

    def one(scenario: "Scenario") -> bool:
        options = kit.Options(
            scale=scale or (scenario.quick_scale if is_quick else 1.0),
            repeat=repeat or (1 if is_quick else scenario.repeat),
            seed=seed,
            keep=None if keep is None else Path(keep).absolute() / scenario.name,
            judge_speed=not is_quick,
        )
        result = scenario.run(options, _say)
        if folder is not None:
            result.save(folder)
        _say({"scenario": scenario.name, "passed": result.passed, "result": asdict(result)})
        return result.passed

    # Side by side only where nobody judges speed: most of the time they wait.
    with ThreadPoolExecutor(_QUICK_ONES if is_quick else 1) as pool:
        try:
            have_passed = list(pool.map(one, wanted))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if not all(have_passed):
        raise typer.Exit(1)


def _say(values: "Mapping[str, Any]") -> None:
    render.as_json(dict(values))


def _list(call: Call, known: "Any") -> None:
    rows: list[Scenario] = list(known)
    if call.as_json:
        render.as_json(
            [
                {"name": each.name, "faults": list(each.faults), "promise": each.promise,
                 "fault": each.fault, "target": each.target}
                for each in rows
            ]
        )  # fmt: skip
    else:
        table = [
            {"scenario": e.name, "faults": ", ".join(e.faults), "fault": e.fault} for e in rows
        ]
        render.table(table, ("scenario", "faults", "fault"))
