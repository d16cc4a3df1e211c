"""Tiny random models of every architecture, built once per session; nothing is downloaded.

Heavy packages are imported inside functions: the process that shares tests out to workers needs
none of them.
"""

import copy
import gc
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import shape_checks  # before the packages are imported

ARCHITECTURES = (
    "llava", "llava_next", "llava_onevision", "blip2_opt", "blip2_llama", "instructblip",
    "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3", "paligemma", "idefics3", "smolvlm", "internvl",
)  # fmt: skip
FAMILIES = ("llava", "blip2_opt", "blip2_llama")
# The most different decoders: LayerNorm, biases, learned positions; norms after sublayers and
# attention in both directions over the image; writes between layers and rotary positions in 3D.
DIFFERENT = ("blip2_opt", "gemma3", "qwen3_vl")
_built, _read = {}, {}
gc.disable()  # until all modules are imported


def pytest_configure(config):
    """Compute on one thread: tiny models gain nothing from more, which wait for each other.

    Hypothesis does not fail on time, which says how busy the machine is.
    """
    if not config.getoption("numprocesses", 0):  # not the process that shares tests out
        import torch
        from hypothesis import HealthCheck, settings

        untimed = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
        settings.register_profile("untimed", **untimed)
        settings.load_profile("untimed")

        torch.set_num_threads(1)
        os.environ["OMP_NUM_THREADS"] = "1"  # of commands that tests start


def pytest_collection_finish():
    """Modules stay: a collection of garbage need not look at them (half a second each time)."""
    gc.enable()
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)  # cycles are few: collections took 5 % of the time


def pytest_runtest_setup():
    """Shapes are checked again in each test."""
    shape_checks.start_test()


def tiny_vlm(name):
    """The tiny model of one architecture, the same one whenever it is asked for."""
    import tiny_models

    from attrib.model.vlm import VLM

    if name not in _built:
        _built[name] = VLM(*tiny_models.build(name), name=name)
    return _built[name]


def save_tiny(folder, name="llava"):
    """The folder, with a tiny model of one architecture and its processor in it."""
    vlm = tiny_vlm(name)
    copy.deepcopy(vlm.model).save_pretrained(folder)  # a copy: saving changes the config
    vlm.processor.save_pretrained(folder)
    return folder


def picture(width=60, height=40, seed=0):
    """An image of noise."""
    import torch
    from PIL import Image

    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def examples(num=3):
    """Images and ragged prompts; every third example is text alone."""
    images = [None if i % 3 == 1 else picture(40 + 10 * i, 60, seed=i) for i in range(num)]
    return images, [f"What is {'very ' * (i % 4)}red?" for i in range(num)]


@pytest.fixture(scope="session", params=ARCHITECTURES)
def any_vlm(request):
    """Each of the 14 architectures."""
    return tiny_vlm(request.param)


@pytest.fixture(scope="session", params=FAMILIES)
def vlm(request):
    """The three families of the papers."""
    return tiny_vlm(request.param)


@pytest.fixture(scope="session", params=DIFFERENT)
def different_vlm(request):
    """Three architectures that differ most, where all 14 would prove no more."""
    return tiny_vlm(request.param)


@pytest.fixture(scope="session")
def batch(vlm):
    """Images, a text alone, ragged prompts, padded on the left."""
    return vlm.encode(*examples(), padding_side="left")


@pytest.fixture
def quickly_loaded(monkeypatch):
    """Models are not verified, and a checkpoint is read once, as long as its files stay the same.

    Half a second each: tests/attrib/test_loading.py is about both.
    """
    from attrib import loading

    read = loading.read_checkpoint

    def read_once(name, *how):
        files = sorted(Path(name).rglob("*")) if Path(name).is_dir() else []
        if any(file.name == "adapter_config.json" for file in files):
            return read(name, *how)  # its base is elsewhere
        state = [(str(file.resolve()), file.stat().st_mtime_ns) for file in files]
        key = repr((state or name, how))
        if key not in _read:
            _read[key] = read(name, *how)
        model, processor = _read[key]
        return copy.deepcopy(model), processor

    monkeypatch.setattr(loading, "read_checkpoint", read_once)
    monkeypatch.setattr(loading, "verify_model", lambda _: None)


@pytest.fixture
def run(quickly_loaded, monkeypatch, capsys, tmp_path):  # noqa: ARG001 - patches
    """Run a command line in an empty folder; its exit code, standard output and error."""
    from attrib import cli

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["attrib", *map(str, arguments)])
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return run


@pytest.fixture
def unrendered(monkeypatch):
    """Figures are made and named but not rendered: that takes longer than all the rest."""

    def save(_ax, stem):
        files = [Path(f"{stem}{ending}") for ending in (".svg", ".png", ".pdf")]
        for file in files:
            file.touch()
        return files

    monkeypatch.setattr("attrib.plots.save", save)
