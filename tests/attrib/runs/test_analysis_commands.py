"""Analyses as commands: planned, resumed, refused, shared between ranks."""

import errno

import pytest
import tiny_models
import torch
from conftest import picture, save_tiny
from small_data import write_data

from attrib.analyses.attention import measure_attention
from attrib.checks import verify
from attrib.cli.analyse import analyse
from attrib.cli.outputs import default_folder, refuse_unwritable
from attrib.errors import SetupError
from attrib.pipeline.observations import Attention
from attrib.pipeline.options import AnalysisOptions
from attrib.results import Result

TEXT = ("--prompt", "Two and two is", "--out", "o")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Figures are not drawn: that takes longer than all the rest."""
    monkeypatch.setattr("attrib.plots.save", lambda _ax, stem: [stem])


def test_a_dry_run_says_what_there_is_to_do_and_writes_nothing(run, model, tmp_path):
    data = write_data(tmp_path / "data", row_20={"image": "none.png"})
    on = ("--model", model, "--data", data, "--split", "vqa-train", "--out", "o")
    code, out, _ = run("contributions", *on, "--dry-run")
    assert code == 0 and [path.name for path in tmp_path.iterdir()] == ["data"]
    assert "rows: 39 usable, 1 quarantined" in out and "shards: 3, 0 of them done" in out
    assert "batch size: 16; passes left: 3, over 1 process(es)" in out and "float32 on cpu" in out
    assert run("contributions", *on)[0] == 0
    _, out, _ = run("contributions", *on, "--dry-run", "--batch-size", 1)
    assert "shards: 3, 3 of them done" in out and "passes left: 0" in out


def test_a_command_adds_its_own_lines_to_a_dry_run(model, capsys):
    options = AnalysisOptions(model=str(model), prompt="Two and two is", dry_run=True)

    class Costly(Attention):
        def plan(self, vlm, data):
            return [f"cost: {vlm.num_layers * len(data)} cells"]

        def measure(self, _samples):
            pytest.fail("a dry run measures nothing")

    assert analyse(Costly, options) == 0
    assert "  cost: 4 cells\n" in capsys.readouterr().out


def test_a_finished_run_is_not_computed_again(run, model, monkeypatch):
    code, first, _ = run("attention", "--model", model, *TEXT)
    monkeypatch.setattr("attrib.analyses.attention.measure_attention", pytest.fail)
    again = run("attention", "--model", model, *TEXT, "--batch-size", 3)
    assert again[:2] == (code, first) == (0, first) and "1 of 1 shards exist" in again[2]


def test_another_photo_under_the_same_name_is_another_run(run, model, tmp_path):
    photo = tmp_path / "photo.png"
    options = AnalysisOptions(image=photo, prompt="The animal is a")
    arguments = ("attention", "--model", model, "--image", photo, *TEXT)
    picture(seed=1).save(photo)
    before = default_folder("attention", options)
    assert run(*arguments)[0] == 0 and default_folder("attention", options) == before
    picture(seed=2).save(photo)
    code, _, err = run(*arguments)
    assert code == 3 and "image_sha256: " in err and "give another --out" in err
    assert default_folder("attention", options) != before


def test_a_run_with_other_settings_is_refused_with_the_difference(run, model, tmp_path):
    assert run("contributions", "--model", model, *TEXT)[0] == 0
    before = (tmp_path / "o" / "manifest.json").read_text()
    code, _, err = run("contributions", "--model", model, *TEXT, "--norm", "final")
    assert code == 3 and 'norm: "none" there, "final" now' in err and "Traceback" not in err
    assert (tmp_path / "o" / "manifest.json").read_text() == before


def test_a_wrong_option_does_not_block_the_folder(run, model):
    assert run("contributions", "--model", model, *TEXT, "--key", "nonsense")[0] == 2
    assert run("contributions", "--model", model, *TEXT)[0] == 0


@pytest.mark.parametrize(
    ("out", "told"),
    [
        ("file", "file: a file, not a folder; give another --out"),
        (".", "the folder holds file and no run of an analysis"),
        # No user may make a folder there, not even root.
        ("/proc/nowhere", "/proc/nowhere cannot be written: "),
        ("file/deeper", "file/deeper: file is a file, not a folder; give another --out"),
    ],
)
def test_a_folder_that_cannot_take_results_is_named(run, model, tmp_path, out, told):
    (tmp_path / "file").write_text("x")
    code, _, err = run("attention", "--model", model, "--prompt", "It is a", "--out", out)
    assert (code, "Traceback" in err) == (3, False) and told in err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left"), "o: No space left; free some, and the same"),
        (OSError(errno.EROFS, "Read-only"), "o cannot be written: Read-only; give another --out"),
        (
            FileNotFoundError(errno.ENOENT, "No such file", "weights.bin"),
            "weights.bin: No such file; the same command continues with what is in o",
        ),
    ],
)
def test_only_an_error_of_writing_is_called_one(run, model, monkeypatch, error, told):
    def failing(_self, _shard, _done):
        raise error

    monkeypatch.setattr("attrib.runs.shards.ShardStore.write", failing)
    code, _, err = run("attention", "--model", model, *TEXT, "--out", "o")
    assert (code, "Traceback" in err) == (3, False) and told in err


def test_a_model_that_breaks_down_on_a_row_names_row_and_layer(run, tmp_path):
    vlm, processor = tiny_models.build("llava")
    (seven,) = processor.tokenizer("7", add_special_tokens=False).input_ids
    with torch.no_grad():  # the network breaks down where it reads a 7
        vlm.model.language_model.embed_tokens.weight[seven] = float("nan")
    vlm.save_pretrained(tmp_path / "nan")
    processor.save_pretrained(tmp_path / "nan")
    data = write_data(tmp_path / "data")
    on = ("--data", data, "--split", "vqa-train", "--limit", 16, "--out", "o")
    code, out, _ = run("contributions", "--model", tmp_path / "nan", *on)
    assert code == 0 and "samples used: 15, rows quarantined: 1" in out
    told = (tmp_path / "o" / "quarantined.csv").read_text()
    assert ",7,value," in told and "an output that is not finite is 0" in told
    assert Result.load(tmp_path / "o" / "result.parquet").frame["value"].notna().all()


def test_a_model_that_breaks_down_on_everything_is_refused_with_its_first_bad_layer(
    run, tmp_path, monkeypatch
):
    monkeypatch.setattr("attrib.loading.verify_model", verify)
    vlm, processor = tiny_models.build("llava")
    with torch.no_grad():
        vlm.model.language_model.layers[2].mlp.down_proj.weight[0, 0] = float("nan")
    vlm.save_pretrained(tmp_path / "nan")
    processor.save_pretrained(tmp_path / "nan")
    code, _, err = run("attention", "--model", tmp_path / "nan", *TEXT)
    assert code == 3 and "layer 2: its output is not finite" in err
    assert "Traceback" not in err and not (tmp_path / "o").exists()


def test_a_folder_that_may_not_be_written_is_refused_before_a_model_is_read(tmp_path, monkeypatch):
    refuse_unwritable(tmp_path / "new" / "folder")
    monkeypatch.setattr("os.access", lambda _path, _mode: False)  # root may write everywhere
    with pytest.raises(SetupError, match="cannot be written to; give another --out"):
        refuse_unwritable(tmp_path / "new" / "folder")


def test_only_the_first_rank_reports(run, model, monkeypatch):
    arguments = ("attention", "--model", model, *TEXT)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, out, err = run(*arguments)
    assert (code, out) == (0, "") and "(rank 1 of 2)" in err
    monkeypatch.setenv("RANK", "0")
    code, out, _ = run(*arguments)
    assert code == 0 and "samples used: 1" in out
    monkeypatch.setenv("RANK", "2")
    code, _, err = run(*arguments)
    assert code == 3 and "RANK=2 is not one of WORLD_SIZE=2 ranks" in err


def test_every_table_is_saved(run, model, tmp_path, monkeypatch):
    measure = measure_attention

    def two(*given):
        tables = measure(*given)
        return {**tables, "more": tables["attention"].assign(word="x")}

    monkeypatch.setattr("attrib.analyses.attention.measure_attention", two)
    assert run("attention", "--model", model, *TEXT)[0] == 0
    more = Result.load(tmp_path / "o" / "more.parquet")
    assert more.analysis == "more" and set(more.frame["word"]) == {"x"}


def test_an_interruption_is_resumed_by_the_command_it_names(run, model, monkeypatch, tmp_path):
    data, passes = write_data(tmp_path / "data"), []
    measure = measure_attention

    def interrupted(*given):
        passes.append(given)
        if len(passes) == 3:
            raise KeyboardInterrupt
        return measure(*given)

    on = ("--model", model, "--data", data, "--split", "vqa-train", "--out", "o", "--batch-size", 8)
    monkeypatch.setattr("attrib.analyses.attention.measure_attention", interrupted)
    code, _, err = run("attention", *on)
    assert code == 130 and f"to continue: attrib attention --model {model} --data {data}" in err
    code, out, err = run("attention", *on)
    assert code == 0 and "1 of 3 shards exist already" in err and "samples used: 40" in out
