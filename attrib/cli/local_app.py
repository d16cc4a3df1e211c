"""`attrib app`: the explorer and edits in a local web app."""

import ipaddress
import os
import re
import socket
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import field_validator

from attrib.cli.command import ExitCode
from attrib.cli.outputs import log
from attrib.errors import SetupError
from attrib.pipeline.options import Options, option
from attrib.vocabulary import DEFAULT_MODEL, Dtype

if TYPE_CHECKING:
    from attrib.cli.app_session import Session

SIZE = re.compile(r"(\d+) ?([KMG]B)", re.IGNORECASE)


class AppOptions(Options):
    """Options of `attrib app`."""

    model: list[str] | None = option(
        None,
        "Hugging Face id or folder of a further model to choose; again for more.",
        shown="the embedded ones",
    )
    edit: list[Path] | None = option(
        None,
        "Folder of a trained editor to choose; again for more.",
        shown="editors that need no training",
    )
    host: str = option("127.0.0.1", "Address to listen at; any other lets other machines in.")
    port: int = option(7860, "Port; 0 takes a free one.", ge=0, le=65535)
    open: bool = option(True, "Open the page in the browser.", flags=("--open/--no-open",))
    max_upload: str = option("10MB", "Largest file that can be uploaded.")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, ...")
    dtype: Dtype = option("auto", "auto: float32 on a CPU, the checkpoint's on a GPU.")

    @field_validator("max_upload")
    @classmethod
    def _size(cls, given: str) -> str:
        if not SIZE.fullmatch(given):
            raise ValueError(f"expected a size such as 10MB or 500KB, got {given!r}")
        return given


def app(options: AppOptions) -> int:
    """Local web app: upload a photo, ask, explore the answer, try an edit."""
    _require_gradio()
    if not is_loopback(options.host):
        log(f"warning: at {options.host} everybody who reaches this machine can use the app")
    with tempfile.TemporaryDirectory(prefix="attrib-app-", ignore_cleanup_errors=True) as folder:
        session = make_session(options, Path(folder))
        served = serve(options, session)
        try:
            print(f"attrib app: {served.local_url} (Ctrl-C ends it)", flush=True)
            while True:
                time.sleep(1)
        except KeyboardInterrupt:
            return ExitCode.DONE
        finally:
            served.close(verbose=False)


def make_session(options: AppOptions, folder: Path) -> "Session":
    """What computes, with its first model loaded: what cannot start is said before the page opens.

    Args:
        options: The options.
        folder: For temporary files.
    """
    from attrib.cli.app_session import Session
    from attrib.files import WEIGHTS, embedded_names, missing_part

    for path in options.edit or ():
        if not path.is_dir():
            raise SetupError(f"--edit {path}: no folder of a trained editor is there")
    embedded = [name for name in embedded_names() if not missing_part(WEIGHTS / name)]
    embedded.sort(key=lambda name: name != DEFAULT_MODEL)  # it comes first
    models = list(dict.fromkeys([*(options.model or ()), *embedded]))
    session = Session(
        models, options.edit or (), folder, device=options.device, dtype=options.dtype
    )
    session.model(models[0])
    return session


def serve(options: AppOptions, session: "Session") -> Any:
    """Serve the page in threads: no telemetry, no public link, uploads in the session's folder.

    Returns:
        The page, to be closed; its `local_url` is the address.

    Raises:
        SetupError: The port is taken.
    """
    # Gradio reads these when it is imported or first used.
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(session.folder)}
    from attrib.cli.app_page import CSS, build, theme
    from attrib.data import sample_image

    sample = session.folder / "sample.png"
    sample_image().save(sample)
    page = build(session, sample)
    try:
        page.launch(
            server_name=options.host,
            server_port=options.port or _free_port(options.host),
            inbrowser=options.open,
            max_file_size=options.max_upload.replace(" ", ""),
            theme=theme(),
            css=CSS,
            share=False,
            enable_monitoring=False,
            ssr_mode=False,
            mcp_server=False,
            run_history=False,
            footer_links=[],
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise SetupError(f"--port {options.port}: {error}; give another --port") from error
    return page


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as one:
        one.bind((host, 0))
        return one.getsockname()[1]


def _require_gradio() -> None:
    if find_spec("gradio") is None:
        raise SetupError("attrib app needs Gradio: pip install 'attrib[app]'")
