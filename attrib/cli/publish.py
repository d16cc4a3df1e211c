"""`attrib export-model` and `attrib push`: edits for use elsewhere."""

import re
from collections.abc import Sequence
from fnmatch import fnmatch
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument

from attrib.cli.command import ExitCode, add_command
from attrib.cli.edited import EditedOptions, check_edit, edit_of
from attrib.cli.outputs import log
from attrib.cli.photos import open_photos
from attrib.errors import AttribError, SetupError, describe
from attrib.pipeline.options import ModelOptions, Options, Photos, option
from attrib.progress import show_bytes

if TYPE_CHECKING:
    from huggingface_hub import HfApi

PUSHED = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.md")
# Checkpoints of a training, which its result does not need.
KEPT_HERE = ("best.safetensors", "last.safetensors", "training.json", ".*")
KINDS = ("editor.json", "config.json", "*.safetensors")  # one of them is in a folder to push
DENIED = (401, 403)


class ExportOptions(EditedOptions, ModelOptions):
    """Options of `attrib export-model`."""

    image: Photos = option(None, "The photo of the edit; again for another one in the prompt.")
    prompt: str | None = option(None, "The question that is edited; with --target.")
    out: Path | None = option(None, "New folder for the model.")


def export_model(options: ExportOptions) -> int:
    """Write a model with an edit in its weights as a plain folder for transformers."""
    from attrib.pipeline.source import load_model
    from editors.weights.export import export_model as write_model
    from editors.weights.export import require_new

    if options.edit is None or options.out is None:
        raise AttribError("--edit and --out: give a saved edit or an editor, and a new folder")
    made_now = not options.edit.is_file() and options.load is None
    if made_now and not (options.prompt and options.target):
        raise AttribError("--edit: an editor makes the edit from --prompt, --target and --image")
    check_edit(options)
    require_new(options.out)
    photos = open_photos(options.image)
    vlm = load_model(options)
    edit = edit_of(options, vlm, photos, options.prompt or "", options.target or "")
    folder = write_model(vlm, edit, options.out)
    print(f"{folder}: attrib.load({str(folder)!r}), or from_pretrained of transformers, reads it")
    return ExitCode.DONE


class PushOptions(Options):
    """Options of `attrib push`."""

    folder: Annotated[
        Path | None, Argument(help="Folder of an editor, of saved edits, or of an exported model.")
    ] = None
    repo_id: Annotated[str | None, Argument(help="USER/NAME on the Hugging Face hub.")] = None
    public: bool = option(False, "Let everybody read it.", flags=("--public",))
    message: str = option("Upload with attrib", "Message of the commit.")


def push(options: PushOptions) -> int:
    """Upload the folder of an editor, an edit or an exported model to the Hugging Face hub."""
    if options.folder is None or options.repo_id is None:
        raise AttribError("give a folder and a repository: attrib push FOLDER USER/NAME")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", options.repo_id):
        raise AttribError(f"{options.repo_id!r} is no repository; expected USER/NAME")
    files = files_to_push(options.folder)
    print(upload(options.folder, files, options))
    return ExitCode.DONE


def files_to_push(folder: Path) -> list[Path]:
    """The files of a folder that are uploaded: weights, settings and texts.

    Checkpoints stay, and so does what is hidden or in a hidden folder.

    Raises:
        SetupError: There is no such folder, or nothing of an editor, an edit or a model in it.
    """
    if not folder.is_dir():
        raise SetupError(f"{folder}: no such folder; give that of an editor or of saved edits")
    if not any(next(folder.glob(kind), None) for kind in KINDS):
        raise SetupError(
            f"{folder}: no editor (`attrib train`), saved edit (`attrib edit --save`) or model "
            "(`attrib export-model`) is in it"
        )
    return sorted(
        file for file in folder.rglob("*")
        if file.is_file() and any(map(file.match, PUSHED))
        and not any(fnmatch(part, kept) for part in file.relative_to(folder).parts
                    for kept in KEPT_HERE)
    )  # fmt: skip


def upload(folder: Path, files: Sequence[Path], options: PushOptions) -> str:
    """Upload files of a folder to the hub, in one commit; its address.

    Raises:
        SetupError: The message names the cause: no network, not logged in, no permission.
        AttribError: The repository is there, and public or private against what was asked for.
    """
    from huggingface_hub import HfApi

    repo_id, public = str(options.repo_id), options.public
    try:
        api = HfApi()
        api.create_repo(repo_id, private=not public, exist_ok=True)
        if _is_private(api, repo_id) == public:
            told = "private; leave --public out" if public else "public; give --public"
            raise AttribError(f"{repo_id} exists and is {told}, or give another name")
        size = show_bytes(sum(file.stat().st_size for file in files))
        log(f"push: {len(files)} files, {size}, to {repo_id} ({'public' if public else 'private'})")
        made = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=options.message,
            allow_patterns=[escape(file.relative_to(folder).as_posix()) for file in files],
        )
    except AttribError:
        raise
    except Exception as error:  # the classes of the hub's HTTP library change with its version
        raise SetupError(f"push to {repo_id}: {_cause(error)}") from error
    return str(getattr(made, "commit_url", made))


def _is_private(api: "HfApi", repo_id: str) -> bool:
    return bool(api.repo_info(repo_id).private)


def _cause(error: Exception) -> str:
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so nothing is sent; unset it"
    status: Any = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, LocalTokenNotFoundError) or status == DENIED[0]:
        return "not logged in; run `hf auth login`, or set HF_TOKEN"
    if status in DENIED:
        return f"this account may not write there; log in with another one ({describe(error)})"
    if isinstance(error, HfHubHTTPError):
        return describe(error)
    if isinstance(error, ConnectionError | TimeoutError) or "Connect" in type(error).__name__:
        return f"no network: {describe(error)}"
    return describe(error)


COMMANDS = {"export-model": (ExportOptions, export_model), "push": (PushOptions, push)}


def add_to(app: typer.Typer, name: str) -> None:
    """Add one of the commands to the command line."""
    add_command(app, name, *COMMANDS[name])
