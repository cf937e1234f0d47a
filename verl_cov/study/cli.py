"""`verl-cov study`: the studies of a checkout. Each command imports what it needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from verl_cov import terminal

if TYPE_CHECKING:
    from verl_cov.study.protocol import Protocol

app = typer.Typer(
    no_args_is_help=True, help="The paper's claims, put to the test with seeds: list, run, status, report."
)


def _names(incomplete: str) -> list[str]:
    from verl_cov.study import protocol

    return [name for name in protocol.names() if name.startswith(incomplete)]


Study = Annotated[str, typer.Argument(help="A study of recipes/study, or the file of one.", autocompletion=_names)]
Protocols = Annotated[Path | None, typer.Option(help="Folder of studies; else recipes/study of this checkout.")]
DATA, RUNS, TOY, PAGE = Path("docs/study/data"), Path("runs/study"), Path("runs/cache"), Path("docs/study.md")
_DATA_HELP = "Folder of the results, NAME/RUN.csv.gz."
DataFolder = Annotated[Path | None, typer.Option(help=_DATA_HELP, show_default=str(DATA))]
Runs = Annotated[Path, typer.Option(help="Folder of trainings.")]
Toy = Annotated[Path, typer.Option(help="Folder of the tiny models and the toy tasks.", envvar="VERL_COV_TOY")]
Sets = Annotated[Path, typer.Option("--sets", help="Folder that `verl-cov data prepare -o` wrote to.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Output = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        help="The page; a folder beside it gets its figures.",
        show_default="docs/study.md, of all studies",
    ),
]
Claims = Annotated[
    list[str] | None, typer.Option("--claim", help="Only the runs of this claim; may be given several times.")
]


@app.command("list", epilog=terminal.examples("verl-cov study list"))
def list_studies(protocols: Protocols = None, data: DataFolder = None, as_json: AsJson = False) -> None:
    """Which studies there are, what they are about, and how many of their runs are done."""
    from rich.table import Table

    from verl_cov.study import results

    with terminal.one_line():
        studies = _load_all(protocols)
        place = _folder("--data", data, DATA)
        done = [len(results.find(place, study).results) for study in studies]
    if not any(done):
        typer.echo(f"verl-cov: {_none(place, 'NAME')}", err=True)
    if as_json:
        listed = [
            {"name": one.name, "version": one.version, "about": one.about, "runs": len(one.cells), "done": number}
            for one, number in zip(studies, done, strict=True)
        ]
        typer.echo(json.dumps({"studies": listed}, indent=1))
        return
    table = Table("study", "version", "runs", "claims", "about", box=None, padding=(0, 2, 0, 0))
    for one, number in zip(studies, done, strict=True):
        table.add_row(one.name, str(one.version), f"{number}/{len(one.cells)}", str(len(one.claims)), one.about)
    terminal.console().print(table)


@app.command(epilog=terminal.examples("verl-cov study run paper", "verl-cov study run paper --claim collapse"))
def run(
    study: Study,
    claim: Claims = None,
    at_most: Annotated[int | None, typer.Option("--at-most", min=1, help="Stop after so many runs.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show verl's log instead of the progress.")] = False,
    protocols: Protocols = None,
    data: Annotated[Path, typer.Option(help=f"{_DATA_HELP} It is made.")] = DATA,
    runs: Runs = RUNS,
    toy: Toy = TOY,
    sets: Sets = Path("data"),
) -> None:
    """Train what is missing, one run after another; each finished one leaves a small file. The same command goes on.

    Exit code: 1 if a run failed, 130 when stopped, 2 for bad input.
    """
    from verl_cov.recipes.train import signals_as_interrupt
    from verl_cov.study import runner

    console = terminal.console()
    with terminal.one_line():
        protocol = _load(study, protocols)
        places = runner.Places(data, runs, toy, sets)
        wanted = [cell for name in claim or () for cell in protocol.cells_of(protocol.claim(name))]
        cells = [cell for cell in protocol.cells if not claim or cell in wanted]
        try:
            with signals_as_interrupt():
                failed = runner.run(protocol, cells, places, console, at_most=at_most, verbose=verbose)
        except KeyboardInterrupt:
            console.print("Stopped. Nothing is lost: the same command goes on.", markup=False)
            raise typer.Exit(130) from None
        except runner.Stopped as error:
            typer.echo(f"verl-cov: {error}", err=True)
            raise typer.Exit(1) from None
    console.print(f"Next: `verl-cov study report`, `verl-cov study status {study}`", markup=False)
    raise typer.Exit(1 if failed else 0)


@app.command(epilog=terminal.examples("verl-cov study status paper", "verl-cov study status paper --json"))
def status(
    study: Study,
    protocols: Protocols = None,
    data: DataFolder = None,
    runs: Runs = RUNS,
    as_json: AsJson = False,
) -> None:
    """What is done, running and missing, and how long the rest takes."""
    from verl_cov.study import results, runner
    from verl_cov.study import status as state

    with terminal.one_line():
        protocol = _load(study, protocols)
        place = _folder("--data", data, DATA)
        found = results.find(place, protocol)
        missing = state.states(protocol, found, runner.Places(place, runs, TOY, Path("data")))
    if not found.results:
        typer.echo(f"verl-cov: {_none(place, study)}", err=True)
    if as_json:
        typer.echo(json.dumps(state.as_json(protocol, found, missing), indent=1))
        return
    console = terminal.console()
    console.print(state.table(protocol, found, missing))
    console.print(state.line(protocol, found, missing), markup=False)
    for problem in found.problems:
        typer.echo(f"verl-cov: {problem}", err=True)


@app.command(epilog=terminal.examples("verl-cov study report", "verl-cov study report smoke -o report.md"))
def report(
    studies: Annotated[list[str] | None, typer.Argument(help="Studies; else all that are for the report.")] = None,
    output: Output = None,
    protocols: Protocols = None,
    data: DataFolder = None,
) -> None:
    """Write docs/study.md, a row a claim, and every figure, from the results alone.

    Without studies, -o and --data it also brings the tables in the other pages of docs up to date.
    """
    from verl_cov.law import files
    from verl_cov.study import page, results

    with terminal.one_line():
        if output is not None:
            files.check_output(output, (".md",))
        wanted = [_load(name, protocols) for name in studies or ()]
        wanted = wanted or [one for one in _load_all(protocols) if one.reported]
        place = _folder("--data", data, DATA)
        if studies and (output is None or output.resolve() == PAGE.resolve()):
            raise ValueError(f"{PAGE} is the page of all studies: name another with -o")
        if output is None and not PAGE.parent.is_dir():
            raise ValueError(f"there is no folder {PAGE.parent.absolute()}, of a checkout: name a page with -o")
        found = [results.find(place, one) for one in wanted]
        if not any(one.results for one in found):
            raise ValueError(_none(place, "NAME"))
        with terminal.working("writing the report"):
            both = list(zip(wanted, found, strict=True))
            written = page.write(output or PAGE, both, embed=not studies and output is None and data is None)
    for path in written:
        typer.echo(f"written: {path}")
    for one in found:
        for problem in one.problems:
            typer.echo(f"verl-cov: left out: {problem}", err=True)


def _load(name: str, folder: Path | None) -> Protocol:
    from verl_cov.study import protocol

    return protocol.load(name, _folder("--protocols", folder, protocol.FOLDER))


def _load_all(folder: Path | None) -> list[Protocol]:
    """All studies of the folder. Raises ValueError if there are none."""
    from verl_cov.study import protocol

    place = _folder("--protocols", folder, protocol.FOLDER)
    if not protocol.names(place):
        raise ValueError(f"there are no studies in {place}: give --protocols FOLDER, with a NAME.yaml for each")
    return [protocol.load(name, place) for name in protocol.names(place)]


def _folder(option: str, given: Path | None, default: Path) -> Path:
    """The folder of an option. Raises ValueError if one is given that is not there."""
    if given is not None and not given.is_dir():
        raise ValueError(f"{option} {given}: there is no such folder")
    return given or default


def _none(data: Path, study: str) -> str:
    """Says that there are no results, and where they were looked for."""
    made = f"`verl-cov study run {study}` makes them, and --data FOLDER names another place"
    return f"no results in {data.absolute()}: {made}"
