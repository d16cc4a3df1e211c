"""The command line. Heavy imports stay inside the commands, so that `attrib --help` is instant.

Exit codes: 0 done; 1 more rows were quarantined than --max-failures allows; 2 wrong usage; 3 cannot
start; 130 interrupted.
"""

import logging
import sys
from typing import Annotated

import typer

from attrib.cli import (
    analyse,
    data,
    demo,
    doctor,
    edit,
    evaluate,
    faithfulness,
    gate,
    grid,
    heatmap,
    models,
    patching,
    report,
    select,
    sweep,
    table,
    train,
)
from attrib.cli.command import ExitCode, exit_code

app = typer.Typer(
    name="attrib",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> bool:
    if wanted:
        from importlib.metadata import version

        print(f"attrib {version('attrib')}")
        raise typer.Exit
    return wanted


@app.callback()
def attrib(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and stop.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Where in a vision-language model an answer comes from, and which layers to edit."""


demo.add_to(app)
analyse.add_to(app)
heatmap.add_to(app)
faithfulness.add_to(app)
sweep.add_to(app)
patching.add_to(app)
gate.add_to(app)
select.add_to(app)
report.add_to(app)
table.add_to(app)
train.add_to(app)
grid.add_to(app)
edit.add_to(app)
evaluate.add_to(app)
doctor.add_to(app)
models.add_to(app)
data.add_to(app)


def main() -> None:
    """Run the command in `sys.argv`; leaves with one of the exit codes above."""
    # Our own lines only: other libraries bring their handlers along.
    logger, lines = logging.getLogger("attrib"), logging.StreamHandler()
    logger.setLevel(logging.INFO)
    logger.addHandler(lines)
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
    except Exception as error:  # the last place that can turn it into one line
        sys.exit(exit_code(error))
    finally:
        logger.removeHandler(lines)
