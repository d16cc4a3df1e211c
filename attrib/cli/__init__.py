"""The command line. A command's module is imported when the command runs, not for --help.

Exit codes: 0 done; 1 more rows were quarantined than --max-failures allows; 2 wrong usage; 3 cannot
start; 130 interrupted.
"""

import logging
import sys
from importlib import import_module
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_group

from attrib.pipeline import ANALYSES

ANALYSIS, LAYERS, EDITING, SETUP = "Analyses", "Layers", "Editing", "Models and data"
# Name -> panel of --help, module, help text: the first line of the command's docstring (a test
# compares them); the analyses have theirs in `attrib.pipeline`. A module has `add_to`, or a
# function of the command's name whose argument is its options.
COMMANDS = {
    "demo": (
        ANALYSIS,
        "attrib.cli.report",
        "First report on an embedded model; needs no network, GPU or account.",
    ),
    "explore": (
        ANALYSIS,
        "attrib.cli.explore",
        "Explore one answer: a page with contributions, logit lens, attention and heatmaps.",
    ),
    "app": (
        ANALYSIS,
        "attrib.cli.local_app",
        "Local web app: upload a photo, ask, explore the answer, try an edit.",
    ),
    **{name: (ANALYSIS, "attrib.cli.analyse", text) for name, (_, text) in ANALYSES.items()},
    "compare": (
        ANALYSIS,
        "attrib.cli.compare",
        "Compare two runs of one analysis, or editors: paired differences, with intervals.",
    ),
    "export": (
        ANALYSIS,
        "attrib.cli.export",
        "Write the tables of a finished run as CSV, Parquet or a workbook.",
    ),
    "select": (
        LAYERS,
        "attrib.cli.select",
        "Select the layers to edit from contributions, noise sensitivity and patching.",
    ),
    "report": (
        LAYERS,
        "attrib.cli.report",
        "Layer-selection report: one page with the layers, the evidence and the confidence.",
    ),
    "train": (
        EDITING,
        "attrib.cli.train",
        "Train an editor at chosen layers; after an interruption the same command resumes.",
    ),
    "edit": (
        EDITING,
        "attrib.cli.edit",
        "Edit one fact and show the answers before and after.",
    ),
    "export-model": (
        EDITING,
        "attrib.cli.publish",
        "Write a model with an edit in its weights as a plain folder for transformers.",
    ),
    "push": (
        EDITING,
        "attrib.cli.publish",
        "Upload the folder of an editor, an edit or an exported model to the Hugging Face hub.",
    ),
    "evaluate": (
        EDITING,
        "attrib.cli.evaluate",
        "Score a trained editor: reliability, generality and locality in every protocol.",
    ),
    "table": (
        EDITING,
        "attrib.cli.table",
        "Compare editors: train and score what is missing, then tabulate all.",
    ),
    "grid": (
        EDITING,
        "attrib.cli.grid",
        "Train short adapters at every layer and score them alike (DualEdit Fig. 5, Table 1).",
    ),
    "doctor": (
        SETUP,
        "attrib.cli.installation",
        "Show versions, devices, memory and embedded models; exit with 3 if something is missing.",
    ),
    "models": (
        SETUP,
        "attrib.cli.installation",
        "List, check, assemble and fetch models.",
    ),
    "data": (
        SETUP,
        "attrib.cli.data_commands",
        "Check edit data, export the scenes, get an image.",
    ),
}
FIRST_STEPS = """Five questions, five commands; `attrib COMMAND --help` lists the options of each.

  Why this answer?              attrib explore --image photo.jpg --prompt "What is this?"
  Which layers make it?         attrib contributions --limit 64
  Which tokens matter, where?   attrib sweep --modality text --limit 64
  Which layers should I edit?   attrib select --limit 64
  Does an edit hold?            attrib train --layers "text:1 visual:1", then attrib evaluate

A first report without any of your data: attrib demo. All commands: attrib --help."""
SETTINGS: dict[str, Any] = {
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": "rich",
    "context_settings": {"help_option_names": ["-h", "--help"]},
}


class LazyGroup(TyperGroup):
    """Commands that are imported when they run; --help shows their texts from `COMMANDS`."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names, in the order of `COMMANDS`."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command without parameters, for the list in --help."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        panel, _, text = COMMANDS[cmd_name]
        return TyperCommand(cmd_name, help=text, rich_help_panel=panel)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command to run, imported now."""
        name, listed, rest = super().resolve_command(ctx, args)
        return name, load_command(name) if name else listed, rest


def load_command(name: str) -> Any:
    """Import a command's module; the command."""
    app = typer.Typer(**SETTINGS)
    module = import_module(COMMANDS[name][1])
    if hasattr(module, "add_to"):
        module.add_to(app, name)
    else:
        from attrib.cli.command import add_command

        run = getattr(module, name)
        add_command(app, name, get_type_hints(run)["options"], run)
    return get_group(app).commands[name]


APP_SETTINGS: dict[str, Any] = {**SETTINGS, "add_completion": True}
app = typer.Typer(name="attrib", cls=LazyGroup, **APP_SETTINGS)


def _print_version(wanted: bool) -> bool:
    if wanted:
        from importlib.metadata import version

        print(f"attrib {version('attrib')}")
        raise typer.Exit
    return wanted


@app.callback(invoke_without_command=True)
def attrib(
    ctx: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and stop.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Where in a vision-language model an answer comes from, and which layers to edit."""
    del version  # its callback has printed it
    if ctx.invoked_subcommand is None:
        print(FIRST_STEPS)


def main() -> None:
    """Run the command in `sys.argv`; exits with one of the codes above."""
    # Our own lines only: other libraries bring their handlers along.
    logger, lines = logging.getLogger("attrib"), logging.StreamHandler()
    logger.setLevel(logging.INFO)
    logger.addHandler(lines)
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # the last place that can turn it into one line
        from attrib.cli.command import exit_code

        sys.exit(exit_code(error))
    finally:
        logger.removeHandler(lines)
