"""`attrib heatmap` and `attrib faithfulness`, as a user meets them."""

import json
import re

import pytest
from conftest import save_tiny
from PIL import Image
from typer.testing import CliRunner

from attrib import cli
from attrib.analyses.heatmaps import Perturbation
from attrib.cli.command import resolve
from attrib.pipeline.heatmap import HeatmapOptions
from attrib.results import Result

PROMPT = ["--prompt", "The animal in the picture is called a"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders with tiny random models, by name."""
    names = ("llava", "blip2_opt")
    return {name: save_tiny(tmp_path_factory.mktemp(name), name) for name in names}


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "cat.jpg"
    Image.new("RGB", (50, 30), "teal").save(path)
    return path


def names(folder):
    return {path.name for path in folder.iterdir()}


@pytest.mark.usefixtures("unrendered")
def test_a_photo_gets_a_table_and_an_overlay(run, models, photo, tmp_path):
    given = ("heatmap", "--model", models["llava"], "--image", photo, *PROMPT, "--out", "o")
    code, out, err = run(*given, "--layers", "1-2")
    assert code == 0 and "changes layer" in out
    assert "noise 3 std, radius 0, draws 1, at the block's input, seed 0" in err
    assert {"result.parquet", "grids.parquet", "heatmap.svg", "heatmap.png"} <= names(
        tmp_path / "o"
    )
    table = Result.load(tmp_path / "o" / "result.parquet").frame
    assert sorted(set(table["layer"])) == [1, 2] and len(table) == 2 * 4
    again, told, _ = run(*given, "--layers", "1,2")  # the same run: nothing is computed again
    assert again == 0 and told == out
    assert Result.load(tmp_path / "o" / "result.parquet").frame.equals(table)


def test_each_of_several_photos_gets_its_own_map_on_one_scale(run, models, photo, tmp_path):
    other = tmp_path / "dog.jpg"
    Image.new("RGB", (30, 50), "red").save(other)
    photos = ("--image", photo, "--image", other, "--layers", "1")
    code, _, err = run("heatmap", "--model", models["llava"], *photos, *PROMPT, "--out", "o")
    assert code == 0 and f"about {photo} and {other}" in err
    figures = {f"heatmap-image-{i}.svg" for i in (0, 1)}
    assert figures <= names(tmp_path / "o") and "heatmap.svg" not in names(tmp_path / "o")
    table = Result.load(tmp_path / "o" / "result.parquet").frame
    assert table.groupby("image")["token"].nunique().to_dict() == {0: 4, 1: 4}
    scales = {
        re.search(r"heatmap value, .* to [\d.e-]+", (tmp_path / "o" / name).read_text())[0]
        for name in figures
    }
    assert len(scales) == 1
    assert "(image 2 of 2)" in (tmp_path / "o" / "heatmap-image-1.svg").read_text()
    manifest = json.loads((tmp_path / "o" / "manifest.json").read_text())
    digests = {k: v for k, v in manifest["data"].items() if k.endswith("_sha256")}
    assert set(digests) == {"image[0]_sha256", "image[1]_sha256"}


def test_queries_get_bars_and_a_projected_picture(run, models, photo, tmp_path):
    code, _, _ = run(
        "heatmap", "--model", models["blip2_opt"], "--image", photo, *PROMPT, "--out", "o"
    )
    assert code == 0 and {"queries.svg", "picture.svg", "picture.parquet"} <= names(tmp_path / "o")
    assert "cross-attention" in (tmp_path / "o" / "picture.svg").read_text()


@pytest.mark.usefixtures("unrendered")
def test_data_get_a_picture_for_the_first_samples(run, models, tmp_path):
    code, out, _ = run(
        "heatmap", "--model", models["llava"], "--limit", 3, "--pictures", 2, "--out", "o"
    )
    assert code == 0 and "samples used: 3" in out
    pictures = {name for name in names(tmp_path / "o") if name.endswith(".png")}
    assert pictures == {"heatmap-0.png", "heatmap-1.png", "heat-by-layer.png"}


def test_the_preset_is_the_published_program_and_options_override_it():
    def noise(**flags):
        return resolve(HeatmapOptions, None, flags).perturbation()

    assert noise() == Perturbation()
    published = Perturbation(0.7, "abs", 3, 10, 0, "attention")
    assert noise(preset="published-code") == published
    changed = noise(preset="published-code", draws=2, seed=5)
    assert changed == Perturbation(0.7, "abs", 3, 2, 5, "attention")


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ([*PROMPT], 2, "text only"),
        (["--image", "cat.jpg", *PROMPT, "--layers", "9"], 2, "layers 0 to 3"),
        (["--image", "cat.jpg", *PROMPT, "--layers", "x"], 2, "expected layers such as"),
        (["--image", "nowhere.jpg", *PROMPT], 2, "--image: 'nowhere.jpg': no such file"),
    ],
)
def test_mistakes_are_one_line_and_an_exit_code(run, models, photo, arguments, code, told):
    assert photo.exists()
    got, _, err = run("heatmap", "--model", models["llava"], *arguments)
    assert (got, told in err, "Traceback" in err) == (code, True, False), err


@pytest.mark.parametrize("flags", [["--noise", "-1"], ["--radius", "-1"], ["--unit", "sigma"]])
def test_values_out_of_range_are_usage_errors(run, flags):
    assert run("heatmap", *flags)[0] == 2


def test_a_radius_is_refused_where_there_is_no_grid(run, models, photo):
    given = ("heatmap", "--model", models["blip2_opt"], "--image", photo, *PROMPT)
    code, _, err = run(*given, "--preset", "published-code")
    assert code == 2 and "use radius=0" in err


@pytest.mark.usefixtures("unrendered")
def test_faithfulness_writes_its_table_and_three_figures(run, models, tmp_path):
    code, out, _ = run("faithfulness", "--model", models["llava"], "--limit", 8, "--out", "o")
    assert code == 0 and "chance" in out and "gradient" in out
    used = Result.load(tmp_path / "o" / "result.parquet").examples
    assert used < 8  # such as "How many shapes are there?"
    counted = f"samples used: {used}, rows quarantined: 0, not about a single object: {8 - used}"
    assert counted in out and out.endswith("pointing.png\n")
    assert {"pointing.svg", "auc.svg", "auc-objects.svg"} <= names(tmp_path / "o")
    table = Result.load(tmp_path / "o" / "result.parquet").frame
    assert set(table["method"]) == {"heatmap", "heatmap, noise 0.1", "attention", "gradient"}
    manifest = json.loads((tmp_path / "o" / "manifest.json").read_text())
    assert manifest["options"]["seed"] == 0


@pytest.mark.parametrize(
    "flags", [PROMPT, ["--layers", "1"], ["--data", "scenes-captions", "--limit", "4"]]
)
def test_faithfulness_needs_a_ground_truth_and_all_layers(run, models, flags):
    code, _, err = run("faithfulness", "--model", models["llava"], *flags)
    told = ("needs a dataset", "No such option", "scenes-vqa only")
    assert code == 2 and any(message in err for message in told)


@pytest.mark.usefixtures("unrendered")
def test_deletion_compares_maps_with_a_random_order_on_a_photo(run, models, tmp_path):
    Image.effect_noise((64, 48), 90).convert("RGB").save(tmp_path / "photo.png")
    photo = ["--image", tmp_path / "photo.png", *PROMPT, "--steps", 3, "--baseline", "blur"]
    code, out, _ = run("deletion", "--model", models["llava"], *photo, "--out", "o")
    assert code == 0 and "One example: no confidence interval" in out
    assert "gradient, layer 0" in out and "over random" in out
    assert {"deletion.svg", "curves.parquet"} <= names(tmp_path / "o")
    curves = Result.load(tmp_path / "o" / "curves.parquet").frame
    assert len(set(curves["share"])) == 4 and set(curves["share"]) >= {0.0, 1.0}


@pytest.mark.parametrize("command", ["heatmap", "faithfulness", "deletion"])
def test_the_commands_explain_themselves(command):
    result = CliRunner().invoke(cli.app, [command, "--help"])
    assert result.exit_code == 0 and command in result.output
