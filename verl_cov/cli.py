"""The command ``verl-cov``. Each command imports what it needs, so that ``--help`` is instant."""

from __future__ import annotations

import io
import sys

import typer

from verl_cov import __version__, patch, terminal
from verl_cov.dashboard import EXAMPLES as dashboard_examples
from verl_cov.dashboard import dashboard
from verl_cov.doctor.cli import EXAMPLES as doctor_examples
from verl_cov.doctor.cli import doctor
from verl_cov.law import cli as law
from verl_cov.manual import EXAMPLES as docs_examples
from verl_cov.manual import docs
from verl_cov.recipes import cli as recipes
from verl_cov.selftest.cli import EXAMPLES as selftest_examples
from verl_cov.selftest.cli import selftest
from verl_cov.study import cli as study
from verl_cov.tasks.data import cli as data
from verl_cov.tokens import EXAMPLES as token_examples
from verl_cov.tokens import tokens

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},  # of all commands
    epilog=terminal.examples(
        "verl-cov doctor",
        "verl-cov recipes run tiny grpo kl_cov toy",
        "verl-cov watch runs",
        "verl-cov --install-completion",
    ),
    help="Clip-Cov and KL-Cov for verl; where a run's entropy goes, and where its score ends.",
)
app.add_typer(recipes.app, name="recipes")
app.add_typer(study.app, name="study")
app.add_typer(data.app, name="data")
app.add_typer(patch.app, name="patch")
# A user may paste a whole command, with options of Python's and Hydra's.
app.command(context_settings={"ignore_unknown_options": True}, epilog=doctor_examples)(doctor)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit()


app.command(epilog=selftest_examples)(selftest)
app.command(epilog=token_examples)(tokens)
for command in law.COMMANDS:
    app.command(epilog=law.EXAMPLES[command])(command)
app.command(epilog=dashboard_examples)(dashboard)
app.command(epilog=docs_examples)(docs)


def main() -> None:
    """Entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that knows ASCII only still gets the numbers
    with terminal.installed():
        app(prog_name="verl-cov")
