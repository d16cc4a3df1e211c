"""Tiny random models of every architecture, built once per session; nothing is downloaded.

Heavy packages are imported inside functions: the process that shares tests out to workers needs
none of them.
"""

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
_built = {}
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
    import tiny_models

    for part in tiny_models.build(name):
        part.save_pretrained(folder)
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
def run(monkeypatch, capsys, tmp_path):
    """Run a command line in an empty folder; its exit code, standard output and error.

    Models are not verified (half a second each): tests/attrib/test_loading.py is about that.
    """
    from attrib import cli

    monkeypatch.setattr("attrib.loading.verify_model", lambda _: None)

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
        files = [Path(f"{stem}{ending}") for ending in (".svg", ".png")]
        for file in files:
            file.touch()
        return files

    monkeypatch.setattr("attrib.plots.save", save)
