"""Parts of the GPU benchmark: their peak memory, and what stops with them."""

import subprocess
from pathlib import Path

import psutil
import pytest
import torch

from attrib.forward.peak_memory import peak_bytes
from benchmarks import gpu, harness, steps
from benchmarks.gpu import GPU
from benchmarks.steps import Steps


class Counters:
    """Stands in for `torch.cuda`; each device has its own numbers."""

    def __init__(self):
        self.asked = []

    def __getattr__(self, name):
        def answer(device=None):
            self.asked.append((name, device))
            return {"max_memory_allocated": 3 * 2**20, "memory_allocated": 2**20}.get(name)

        return answer


def test_all_that_is_measured_on_a_gpu_is_of_the_device_that_is_given(monkeypatch):
    counters = Counters()
    monkeypatch.setattr(torch, "cuda", counters)
    harness.clock("cuda:1")
    harness.device_name("cuda:1")
    harness.reset_peak("cuda:1")
    assert harness.peak_mib("cuda:1") == 3
    assert peak_bytes(lambda: None, "cuda:1") == 2 * 2**20
    assert {device for name, device in counters.asked if name != "empty_cache"} == {"cuda:1"}
    assert len(counters.asked) >= 10


@pytest.mark.parametrize(
    ("part", "row"),
    [
        ("edits", {"editors": [{"peak MiB": 7.0}, {"failed": "memory"}, {"peak MiB": 5.0}]}),
        ("attribution", {"ratios": [{"ours peak MiB, weights included": 7.0}, {"what": "a"}]}),
        ("evaluation", {"samples": 2}),
    ],
)
def test_a_parts_peak_is_the_highest_of_its_measurements(part, row, monkeypatch):
    monkeypatch.setattr(GPU, part, lambda _self: row)
    monkeypatch.setattr(gpu, "peak_mib", lambda _device: 5.0)
    expected = 5.0 if part == "evaluation" else 7.0
    assert GPU("cpu", dry=True).run(part) == {**row, "device peak MiB": expected}
    monkeypatch.setattr(gpu, "peak_mib", lambda _device: None)  # on a CPU nothing is counted
    assert GPU("cpu", dry=True).run(part)["device peak MiB"] is None


STARTS = """
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
file = pathlib.Path(__file__).with_suffix(".pid")
file.with_suffix(".new").write_text(str(child.pid))
file.with_suffix(".new").rename(file)
time.sleep(600)
"""


@pytest.mark.parametrize("error", [subprocess.TimeoutExpired, KeyboardInterrupt])
def test_what_a_stopped_step_has_started_stops_too(error, tmp_path, monkeypatch):
    (tmp_path / "starts_another.py").write_text(STARTS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    written = tmp_path / "starts_another.pid"

    class Stopped(subprocess.Popen):
        def wait(self, timeout=None):
            if timeout is None:
                return super().wait()
            while not written.exists():
                assert self.poll() is None
            raise error(self.args, timeout)

    monkeypatch.setattr(steps.subprocess, "Popen", Stopped)
    run = Steps(Path("none"), {}, dict, ["starts_another"], limit=600)
    if error is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            run._one("a")
    else:
        assert run._one("a") == {"failed": "took more than 600 s"}
    number = int(written.read_text())
    try:
        psutil.Process(number).wait(timeout=60)
    except psutil.NoSuchProcess:
        return
    except psutil.TimeoutExpired:
        assert psutil.Process(number).status() == psutil.STATUS_ZOMBIE
