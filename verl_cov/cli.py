"""The command ``verl-cov``. Today: ``doctor``. Each command imports what it needs, so that ``--help`` is instant."""

from __future__ import annotations

import typer

from verl_cov import __version__

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Clip-Cov and KL-Cov for verl.")


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit()


@app.command()
def doctor(
    ray: bool = typer.Option(True, help="Also look inside a Ray worker (about 15 s)."),
) -> None:
    """Check that verl finds and uses verl-cov here. Exit code 0 if all is well, 1 if not; each failure says the fix."""
    from verl_cov.host import doctor as checks

    raise typer.Exit(0 if checks.run(with_ray=ray) else 1)


def main() -> None:
    """Entry point of the console script."""
    app()
