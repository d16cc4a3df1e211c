"""`attrib sweep`: its table, figure and finding, its options, and what it says in advance."""

import copy
import json

import numpy as np
import pytest
import torch
from conftest import picture, save_tiny, tiny_vlm
from PIL import Image

from attrib import plots
from attrib.analyses.sensitivity import SIGMAS, measure_sensitivity, sensitivity
from attrib.cli.analyse import command_options
from attrib.cli.command import resolve
from attrib.cli.outputs import default_folder
from attrib.data import EditRequest, EditSample
from attrib.errors import AttribError, SetupError
from attrib.model.vlm import VLM
from attrib.pipeline.interventions import Sensitivity
from attrib.report.intervention_summaries import summarize_sensitivity
from attrib.results import Result, tidy
from attrib.runs.collect import collect

SweepOptions = command_options(Sensitivity)
FULL = {"unit": "std", "draws": 1, "seed": 0}


def planted(curve, sigmas=(0.5, 1.0), modality="text", examples=12, **options):
    """A sweep whose divergence follows `curve` over the layers and grows with sigma squared."""
    noise = 1 + 0.05 * np.random.default_rng(0).normal(size=(examples, len(curve), len(sigmas)))
    values = noise * np.asarray(curve)[None, :, None] * np.square(sigmas)
    axes = {"example": [f"e{i}" for i in range(examples)], "layer": range(len(curve))}
    table = tidy(values, **axes, sigma=sigmas).assign(modality=modality)
    made = {"model": {"name": "planted", "layers": len(curve)}, "seed": 0}
    return Result("sweep", table, {**made, "options": {"modality": modality, **options}})


# --- the table


@pytest.fixture(scope="module")
def samples():
    requests = [EditRequest(picture(seed=i), f"What is {'very ' * i}it?", "red") for i in range(2)]
    return [EditSample(f"e{i}", request) for i, request in enumerate(requests)]


def test_the_table_holds_the_sensitivities(samples):
    vlm = tiny_vlm("llava")
    requests = [sample.request for sample in samples]
    batch = vlm.encode([r.image for r in requests], [r.prompt for r in requests])
    batch = batch.named([sample.id for sample in samples])
    options = {"modality": "visual", "sigmas": (0.0, 0.5), "layers": [2, 0], **FULL}
    table = measure_sensitivity(vlm, batch, samples, **options)["sweep"]
    values = sensitivity(vlm, batch, "visual", (0.0, 0.5), layers=[2, 0])
    assert np.allclose(table["value"], values.flatten().numpy())
    assert list(table.columns) == ["example", "layer", "sigma", "value", "modality"]
    one = table[(table["example"] == "e1") & (table["layer"] == 0) & (table["sigma"] == 0.5)]
    assert np.isclose(one["value"].item(), values[1, 1, 1].item())


def test_a_sample_without_an_image_is_set_aside_and_the_others_are_measured(samples):
    some = [samples[0], EditSample("bare", EditRequest(None, "Who?", "x")), samples[1]]

    def measure(vlm, batch, of):
        return measure_sensitivity(vlm, batch, of, modality="visual", sigmas=(1.0,), **FULL)

    done = collect(tiny_vlm("llava"), some, measure, batch_size=3)
    assert [sample.id for sample in done.used] == ["e0", "e1"]
    (bad,) = done.quarantined
    assert "modality 'visual': no example has an image" in bad.reason
    assert np.isfinite(done.tables["sweep"]["value"]).all()


def test_a_model_that_breaks_down_is_told_with_the_layer_where_it_does(samples):
    whole = tiny_vlm("llava")
    broken = VLM(copy.deepcopy(whole.model), whole.processor, "broken")
    next(broken.layers[2].parameters()).fill_(torch.nan)

    def measure(vlm, batch, of):
        return measure_sensitivity(vlm, batch, of, modality="text", sigmas=(0.0, 1.0), **FULL)

    with pytest.raises(SetupError, match="an output that is not finite is 2"):
        collect(broken, samples, measure, batch_size=2)


# --- the figure


def test_there_is_one_curve_a_sigma_of_its_own_color_and_marker():
    result = planted([0.1, 0.8, 0.3], sigmas=(0.1, 0.3, 0.5, 0.7, 1.0))
    lines = plots.sensitivity(result).get_lines()
    assert [line.get_label() for line in lines] == [f"σ = {s:g}" for s in SIGMAS]  # noqa: RUF001
    means = result.mean(["sigma", "layer"])
    for line, sigma in zip(lines, SIGMAS, strict=True):
        assert np.array_equal(line.get_ydata(), means[means["sigma"] == sigma]["mean"])
    for look in ("get_color", "get_marker"):
        assert len({getattr(line, look)() for line in lines}) == 5


def test_a_logarithmic_figure_leaves_zeros_out_and_says_what_it_shows():
    result = planted([0.1, 0.001, 0.0], modality="visual", unit="std")
    ax = plots.sensitivity(result, log=True)
    assert ax.get_yscale() == "log" and ax.get_ylim()[0] > 0
    assert "Noise on visual tokens" in plots.svg(ax)
    assert plots.svg(ax) == plots.svg(plots.sensitivity(result, log=True))


# --- the finding


def test_the_finding_names_the_planted_layer_and_how_sure_it_is():
    told = summarize_sensitivity(planted([0.2, 0.1, 0.9, 0.3], unit="std"))
    assert "planted is most sensitive to noise on its text tokens in layer 2" in told
    assert "noise of 1 standard deviation there" in told and "95 % CI 0.8" in told
    assert "(in 100 % of bootstrap samples)" in told
    assert "the highest at 2 of 2 noise levels" in told and "--exclude-last" not in told


def test_the_last_layer_is_named_with_its_caution_and_one_example_with_its():
    told = summarize_sensitivity(planted([0.2, 0.1, 0.9], examples=1, unit="abs"))
    assert "noise of 1 there" in told and "one example" in told
    assert "compare with --exclude-last" in told
    for options in ({"spare_last": True}, {"modality": "visual"}):
        assert "--exclude-last" not in summarize_sensitivity(planted([0.2, 0.1, 0.9], **options))


def test_noise_that_moves_nothing_is_said_to():
    assert "does not change the output" in summarize_sensitivity(
        planted([0.0, 0.0], modality="visual")
    )


# --- the command


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a tiny random LLaVA."""
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture
def sweep(run, tmp_path, model):
    """Run `attrib sweep` on the tiny model, beside a photo; exit code, output, error."""
    Image.new("RGB", (40, 30), "teal").save(tmp_path / "photo.png")
    return lambda *arguments: run("sweep", "--model", model, *arguments)


PHOTO = ("--image", "photo.png", "--prompt", "The animal is a")


def test_it_needs_nothing_but_a_modality_and_says_what_it_took(sweep, tmp_path):
    code, out, err = sweep(*PHOTO, "--modality", "text", "--out", "o")
    assert code == 0 and "is most sensitive to noise on its text tokens in layer" in out
    assert "defaults: --data scenes-vqa" in err
    for taken in (f"--sigmas {','.join(map(str, SIGMAS))}", "--unit std", "--draws 1", "--seed 0"):
        assert taken in err
    assert "--modality" not in err
    names = {path.name for path in (tmp_path / "o").iterdir()}
    assert {"result.parquet", "sensitivity.svg", "sensitivity-log.png", "manifest.json"} <= names
    result = Result.load(tmp_path / "o" / "result.parquet")
    assert len(result.frame) == 4 * len(SIGMAS) and result.analysis == "sweep"
    options = json.loads((tmp_path / "o" / "manifest.json").read_text())["options"]
    assert options["modality"] == "text" and options["unit"] == "std"


def test_a_dry_run_tells_work_memory_and_time_and_writes_nothing(sweep, tmp_path):
    arguments = ("--limit", 3, "--batch-size", 2, "--layers", "0,2-3", "--sigmas", "0.5,1")
    code, out, _ = sweep(*arguments, "--draws", 2, "--dry-run", "--out", "o")
    assert code == 0 and not (tmp_path / "o").exists()
    assert "3 samples x 3 layers x sigmas 0.5, 1 x 2 draw(s)" in out
    assert "cost: 36 perturbed copies" in out and "(with hooks: 39)" in out
    assert "besides the model; up to" in out and "time: about" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--sigmas", "0.1,-1"), "attrib: sigmas: expected numbers of 0 or more"),
        (("--sigmas", "much"), "expected numbers of 0 or more, such as 0.1,0.3"),
        (("--layers", "3-"), "expected layers such as 0,4,8-11, got '3-'"),
        (("--layers", "0,3-1"), "layers: expected layers such as 0,4,8-11, got '3-1'"),
        (("--layers", "2,9", *PHOTO), "there is no layer 9"),
        (("--modality", "visual", "--prompt", "Who?"), "no example has an image"),
    ],
)
def test_mistakes_are_usage_errors_in_one_line(sweep, arguments, told):
    code, _, err = sweep(*arguments)
    assert code == 2 and told in err and "Traceback" not in err
    assert sum(line.startswith("attrib: ") for line in err.splitlines()) == 1


@pytest.mark.parametrize("given", [("--modality", "audio"), ("--unit", "db"), ("--draws", "0")])
def test_unknown_values_are_refused(sweep, given):
    assert sweep(*given)[0] == 2


def test_a_config_file_may_list_sigmas_and_layers(tmp_path):
    (tmp_path / "c.yaml").write_text("sigmas: [0.1, 1]\nlayers: [3, 0, 1]\nunit: abs\n")
    arguments = resolve(SweepOptions, tmp_path / "c.yaml", {}).arguments()
    assert arguments["sigmas"] == [0.1, 1.0] and arguments["layers"] == [0, 1, 3]
    with pytest.raises(AttribError, match="sigmas"):
        resolve(SweepOptions, None, {"sigmas": []})


def test_one_spelling_of_the_same_numbers_is_one_folder():
    def folder(**options):
        return default_folder("sweep", SweepOptions(**options))

    assert folder() == folder(sigmas="0.10, .3,0.5,0.7,1") == folder(max_versions=3)
    assert folder() != folder(modality="visual") != folder(seed=1)
    assert folder(layers="1-3") == folder(layers="1,2,3")
    assert torch.tensor(SweepOptions().arguments()["sigmas"]).equal(torch.tensor(SIGMAS))
