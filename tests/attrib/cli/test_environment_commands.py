"""`attrib doctor`, `attrib models list` and `attrib data sample`: instant, and right."""

import subprocess
import sys
from pathlib import Path

import torch
from PIL import Image

from attrib.cli import installation
from attrib.data import sample_image

INSTANT = """
import shutil, sys
from attrib import cli
from attrib.cli import installation

installation.GPU_DRIVERS, shutil.which = (), lambda _name: None
for arguments in (["doctor"], ["models", "list"], ["data", "sample", sys.argv[1]]):
    cli.app(arguments, standalone_mode=False)
heavy = {"torch", "transformers", "pandas", "matplotlib"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""


def test_looking_around_imports_nothing_heavy(tmp_path):
    file = tmp_path / "sample.png"
    done = subprocess.run(
        [sys.executable, "-c", INSTANT, str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "tiny-llava" in done.stdout and "94.3%" in done.stdout and "CPU" in done.stdout
    assert Image.open(file).tobytes() == sample_image().tobytes()


def test_gpus_are_listed_where_torch_can_use_them(monkeypatch):
    monkeypatch.setattr(installation.platform, "system", lambda: "Linux")
    monkeypatch.setattr(installation, "GPU_DRIVERS", ("/dev/null",))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    card = type("Card", (), {"name": "H100", "total_memory": 80 << 30})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _index: card)
    assert installation._gpus() == [
        ("cuda:0", "H100, 80 GiB: fits 33.0 billion bfloat16 parameters")
    ]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    ((_, why),) = installation._gpus()
    assert "finds no GPU" in why
    monkeypatch.setattr(installation, "GPU_DRIVERS", ("/no/driver",))
    monkeypatch.setattr(installation.shutil, "which", lambda _name: None)
    assert installation._gpus() == []


def test_a_missing_package_is_named_and_fails(run, monkeypatch):
    monkeypatch.setattr(installation, "versions", lambda: {"python": "3", "torch": "not installed"})
    code, out, _ = run("doctor")
    assert code == 3 and "torch is not installed: pip install torch" in out


def test_a_folder_without_a_split_is_answered_with_its_splits(run, tmp_path):
    file = tmp_path / "vqa" / "vqa_train.json"
    file.parent.mkdir()
    file.write_text("[]")
    code, _, err = run("contributions", "--data", tmp_path)
    assert code == 2 and f"give a split: {tmp_path} has vqa-train" in err


def test_the_sample_image_is_written_where_it_is_wanted(run, tmp_path):
    code, out, _ = run("data", "sample")
    assert code == 0 and Path(tmp_path, "sample.png").is_file() and "What color is the star?" in out


def test_the_list_of_models_is_whole_at_80_columns(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = run("models", "list")
    assert code == 0 and "tiny-minigpt4" in out and "…" not in out
    assert out.count("100.0%") >= 3  # the widest scores
