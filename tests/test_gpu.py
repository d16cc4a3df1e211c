"""On a GPU everything has the values that it has on the CPU, and edits leave no trace.

ATTRIB_GPU_TESTS=cpu runs these tests against the CPU itself.
"""

import os

import pytest
import torch

import attrib
from editors import EDITORS
from editors.evaluation.reference_model import Checksum

DEVICE = os.environ.get("ATTRIB_GPU_TESTS", "cuda")
LIMITS = {"float32": 1e-3, "bfloat16": 0.1}  # of the largest value
LAYERS = {"visedit": {"visual": [6]}, "dualedit": {"text": [5], "visual": [6]}}
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no CUDA device"),
]
ANALYSES = {
    "contributions": lambda vlm, batch: attrib.contributions(vlm, batch),
    "heatmaps": lambda vlm, batch: attrib.heatmaps(vlm, batch),
    "attention": lambda vlm, batch: attrib.attention(vlm, batch),
    "text": lambda vlm, batch: attrib.sensitivity(vlm, batch, "text", (0.5,)),
    "visual": lambda vlm, batch: attrib.sensitivity(vlm, batch, "visual", (0.5,)),
    "both": lambda vlm, batch: attrib.sensitivity(vlm, batch, "both", (0.5,)),
}


@pytest.fixture(scope="module", params=LIMITS)
def models(request):
    """One model on the CPU and on the device, and how far they may differ."""
    pair = [attrib.load("tiny-llava", device=d, dtype=request.param) for d in ("cpu", DEVICE)]
    return *pair, LIMITS[request.param]


@pytest.fixture(scope="module")
def samples():
    return list(attrib.data.load("scenes-vqa", split="train", limit=8))


def same(ours, theirs, limit):
    ours, theirs = (torch.nan_to_num(one.detach().float().cpu()) for one in (ours, theirs))
    assert theirs.abs().max() > 0
    assert (ours - theirs).abs().max() <= limit * theirs.abs().max()


def encoded(vlm, samples):
    asked = [sample.request for sample in samples]
    return vlm.encode([one.image for one in asked], [one.prompt for one in asked])


@pytest.mark.parametrize("name", ANALYSES)
def test_an_analysis(name, models, samples):
    cpu, gpu, limit = models
    with torch.no_grad():
        ours, theirs = (ANALYSES[name](vlm, encoded(vlm, samples[:2])) for vlm in (gpu, cpu))
    assert ours.isnan().cpu().equal(theirs.isnan())
    same(ours, theirs, limit)


def test_patching_and_gate_similarity(models, samples):
    cpu, gpu, limit = models
    found = []
    for vlm in (gpu, cpu):
        one, other = (encoded(vlm, samples[i : i + 1]) for i in (0, 2))
        asked = samples[0].request
        elsewhere = vlm.encode([samples[2].request.image], [asked.prompt])
        gate = attrib.gate_similarity(vlm, one, other, 4)
        found.append((attrib.patching_difference(vlm, one, elsewhere), gate))
    for ours, theirs in zip(*found, strict=True):
        same(torch.as_tensor(ours), torch.as_tensor(theirs), limit)


@pytest.mark.parametrize("dtype", LIMITS)
def test_every_check_passes(dtype):
    report = attrib.check(attrib.load("tiny-llava", device=DEVICE, dtype=dtype))
    assert report.passed, str(report)


@pytest.mark.skipif(DEVICE == "cpu", reason="nothing to offload to")
@pytest.mark.parametrize("name", ANALYSES)
def test_layers_offloaded_to_main_memory(name, samples):
    whole = attrib.load("tiny-llava", device=DEVICE)
    parts = ["embed_tokens", "norm", "rotary_emb", *(f"layers.{i}" for i in range(10))]
    places = {f"model.language_model.{part}": DEVICE for part in parts}
    places |= dict.fromkeys(("model.vision_tower", "model.multi_modal_projector"), DEVICE)
    places |= {"lm_head": DEVICE, "model.language_model.layers.5": "cpu"}
    split = attrib.load("tiny-llava", device_map=places)
    assert split.layers[5].mlp.down_proj.weight.device.type == "meta"  # nothing of it stays there
    with torch.no_grad():
        ours, theirs = (ANALYSES[name](vlm, encoded(vlm, samples[:2])) for vlm in (split, whole))
    same(ours, theirs, 1e-6)


@pytest.mark.parametrize("name", EDITORS)
def test_an_edit(name, models, samples, tmp_path):
    cpu, gpu, limit = models
    options = {"steps": 1} if EDITORS[name].is_trained else {}
    options |= {"layers": LAYERS[name], "gate": "none"} if name in LAYERS else {}
    EDITORS[name].train(cpu, samples, out=tmp_path, preset="embedded", **options)
    outputs = []
    for vlm in (gpu, cpu):
        before = Checksum.of(vlm.model)
        editor = EDITORS[name].load(tmp_path, vlm)
        edit = editor.edit(vlm, samples[0].request)
        with torch.no_grad(), edit.applied(vlm):
            outputs.append(vlm.logits(encoded(vlm, samples[:2]))[:, -1])
        before.require(Checksum.of(vlm.model), name, "an edit")
    same(*outputs, limit)
