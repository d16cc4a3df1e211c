"""One options model makes one command: its flags, its YAML file and its manifest."""

import inspect
import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from attrib.errors import AttribError, SetupError, describe

Given = TypeVar("Given", bound=BaseModel)


class ExitCode(IntEnum):
    """Exit codes of the command line."""

    DONE = 0
    TOO_MANY_FAILURES = 1
    USAGE = 2
    CANNOT_START = 3
    NOT_TAKEN = 4  # an edit was made, and the model does not give the new answer
    INTERRUPTED = 130
    TERMINATED = 143


FROM_SIGNAL = 128  # an exit code above it is this plus the number of a signal


def add_command(
    app: typer.Typer, name: str, options: type[Given], run: Callable[[Given], int]
) -> None:
    """Make `run` a command whose flags are the fields of `options`.

    Values come from the defaults, then from the YAML file given as --config, then from flags. The
    help text is the docstring of `run`, its return value the exit code.
    """

    def call(ctx: Any, config: Path | None = None, **values: Any) -> None:
        flags = {n: v for n, v in values.items() if _was_typed(ctx, n)}
        chosen = resolve(options, config, flags)
        refuse_other_options(chosen)
        try:
            with interrupted_by(signal.SIGTERM):
                code = run(chosen)
        except KeyboardInterrupt as stop:
            print(f"interrupted; to continue: {invocation()}", file=sys.stderr)
            number = stop.args[0] if stop.args else signal.SIGINT
            raise typer.Exit(FROM_SIGNAL + number) from None
        raise typer.Exit(code)

    parameters = _parameters(options)
    call.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    call.__doc__ = run.__doc__
    app.command(name)(call)


@contextmanager
def interrupted_by(number: signal.Signals) -> Iterator[None]:
    """Raise KeyboardInterrupt, as Ctrl-C does, with the number of a signal when it comes."""
    if threading.current_thread() is not threading.main_thread():  # signals go to that thread
        yield
        return

    def stop(number: int, _frame: object) -> None:
        raise KeyboardInterrupt(number)

    before = signal.signal(number, stop)
    try:
        yield
    finally:
        signal.signal(number, before)


def resolve(options: type[Given], config: Path | None, flags: dict[str, Any]) -> Given:
    """The options: defaults, overridden by a YAML file, overridden by flags.

    Raises:
        AttribError: The file is not a YAML mapping, or a key or value does not fit.
    """
    values = {} if config is None else _read_yaml(config)
    try:
        return options.model_validate({**values, **flags})
    except ValidationError as error:
        from attrib.pipeline.options import explain

        name = ".".join(str(part) for part in error.errors()[0]["loc"])
        in_file = config is not None and name in values and name not in flags
        where = f"{config}: " if in_file else ""
        raise AttribError(f"{where}{explain(error, options)}") from None


def refuse_other_options(chosen: BaseModel) -> None:
    """Refuse values of options that the command does not have.

    Raises:
        AttribError: The message says why there is no such option.
    """
    for name, why in getattr(chosen, "refused", {}).items():
        if name in chosen.model_fields_set and getattr(chosen, name) is not None:
            raise AttribError(f"--{name.replace('_', '-')}: {why}")


@contextmanager
def naming_option(name: str) -> Iterator[None]:
    """Name an option in errors about the single text that it gives."""
    try:
        yield
    except AttribError as error:
        why = str(error).removeprefix("prompt 0 ").removeprefix("target 0 ")
        raise AttribError(f"--{name}: {why}") from error


def next_command(command: str, options: Any, *more: str) -> str:
    """A command line that can be pasted: on the model of `options`, with further arguments."""
    fields, on = type(options).model_fields, ["--model", options.model]
    for name in ("revision", "dtype", "device", "device_map", "processor", "template"):
        if (value := getattr(options, name)) != fields[name].default:
            on += [f"--{name.replace('_', '-')}", value]
    on += ["--trust-remote-code"] if options.trust_remote_code else []
    return shlex.join(["attrib", command, *on, *more])


def invocation() -> str:
    """The command line that is running, ready to be pasted."""
    return shlex.join(["attrib", *sys.argv[1:]])


def exit_code(error: Exception) -> ExitCode:
    """Print an error in one line on standard error; the exit code that belongs to it."""
    if os.environ.get("ATTRIB_DEBUG"):
        traceback.print_exception(error)
    message, code = _explain(error)
    print(" ".join(f"attrib: {message}".split()), file=sys.stderr)
    return code


def _explain(error: Exception) -> tuple[str, ExitCode]:
    if isinstance(error, SetupError):
        return str(error), ExitCode.CANNOT_START
    if isinstance(error, AttribError):
        return str(error), ExitCode.USAGE
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}", ExitCode.CANNOT_START
    from attrib.errors import is_out_of_memory

    if is_out_of_memory(error):
        what = f"out of memory ({describe(error)})"
        return f"{what}; try a smaller image or --batch-size", ExitCode.CANNOT_START
    # A bug: the traceback belongs into its report.
    raise error


def _was_typed(ctx: Any, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name in ("COMMANDLINE", "ENVIRONMENT")


def _parameters(options: type[BaseModel]) -> list[inspect.Parameter]:
    only = inspect.Parameter.KEYWORD_ONLY
    hints = get_type_hints(options, include_extras=True)
    fields = [
        inspect.Parameter(name, only, annotation=_annotation(name, hints[name], field,
                                                           name in getattr(options, "refused", ())),
                          default=field.default)
        for name, field in options.model_fields.items()
    ]  # fmt: skip
    help_text = "YAML file with values for these options; flags override it."
    config = Annotated[Path | None, typer.Option(help=help_text)]
    return [
        inspect.Parameter("ctx", only, annotation=typer.Context),
        *fields,
        inspect.Parameter("config", only, annotation=config, default=None),
    ]


def _annotation(name: str, hint: Any, field: FieldInfo, hidden: bool = False) -> Any:
    """The annotation that typer reads: from the field, unless the hint has an option already."""
    extra = field.json_schema_extra
    if not isinstance(extra, dict) or "flags" not in extra:
        return hint
    flags: Any = extra["flags"]
    if extra.get("alias") and not flags:
        flags = [f"--{n.replace('_', '-')}" for n in (name, str(extra["alias"]))]
    limits = {type(m).__name__: m for m in field.metadata}
    settings = {
        "help": field.description,
        "rich_help_panel": extra["panel"],
        "show_default": extra["shown"],
        "hidden": hidden,
        "min": getattr(limits.get("Ge"), "ge", None),
        "max": getattr(limits.get("Le"), "le", None),
    }
    return Annotated[hint, typer.Option(*flags, **settings)]  # pyright: ignore[reportInvalidTypeForm]


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AttribError(f"--config {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise AttribError(f"--config {path}: no plain YAML: {error}") from error
    if not isinstance(values, dict):
        raise AttribError(f"--config {path}: expected options as `name: value`, got {values!r}")
    return {str(name).replace("-", "_"): value for name, value in values.items()}
