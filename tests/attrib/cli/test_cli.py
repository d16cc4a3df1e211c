"""The command line, as a user meets it: what it writes, what it says, what it returns."""

import json
import re
import shlex
import signal
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import torch
from conftest import save_tiny
from PIL import Image
from transformers import LlavaForConditionalGeneration
from typer.testing import CliRunner

import attrib
from attrib import cli
from attrib.cli.analyse import command_options
from attrib.cli.command import exit_code, resolve
from attrib.cli.grid import GridOptions
from attrib.cli.outputs import default_folder, exit_code_for, print_files, write_quarantined
from attrib.cli.train import TrainOptions, _evaluation, default_out
from attrib.data import Quarantined
from attrib.data.scenes.export import ExportResult
from attrib.errors import AttribError, SetupError
from attrib.pipeline import find_analysis
from attrib.results import Result

PHOTO = ["--prompt", "The animal is a"]
ContributionOptions = command_options(find_analysis("contributions"))
BAD = Quarantined("a.json", 0, "src", "is empty")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a tiny random LLaVA."""
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.new("RGB", (40, 30), "teal").save(path)
    return path


def row(**changes):
    """A row in the layout of E-VQA."""
    return {
        "src": "What color is it?", "pred": "blue", "alt": "teal", "rephrase": "Which color?",
        "image": "good.png", "image_rephrase": "good.png", "loc": "nq question: who wrote Emma",
        "loc_ans": "Jane Austen", "m_loc": "good.png", "m_loc_q": "Is it big?", "m_loc_a": "yes",
    } | changes  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """Edit data: two good rows, then one of each kind of bad row that only images can be."""
    images = tmp_path / "data" / "images"
    images.mkdir(parents=True)
    Image.new("RGB", (40, 30), "teal").save(images / "good.png")
    (images / "empty.jpg").write_bytes(b"")
    (images / "page.jpg").write_text("<html>not found</html>")
    names = ["good.png", "good.png", "missing.jpg", "empty.jpg", "page.jpg", "../photo.png"]
    rows = [row(image=name) for name in names] + [row(src="an <image> inside")]
    (tmp_path / "data" / "vqa").mkdir()
    (tmp_path / "data" / "vqa" / "vqa_train.json").write_text(json.dumps(rows))
    return tmp_path / "data"


def test_help_imports_nothing_but_its_own_texts_and_that_of_a_command_no_torch():
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "import rich, typer.rich_utils\n"
        "before = set(sys.modules)\n"
        "from attrib import cli\n"
        "def help(*command):\n"
        "    assert CliRunner().invoke(cli.app, [*command, '--help']).exit_code == 0\n"
        "    print(*sorted({m.split('.')[0] for m in set(sys.modules) - before}))\n"
        "help()\n"
        "for command in ('sweep', 'train', 'select'):\n"
        "    help(command)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    listed, *commands = map(str.split, done.stdout.splitlines())
    assert "attrib" in listed and len(commands) == 3
    heavy = {"torch", "transformers", "pandas", "numpy", "matplotlib", "pydantic", "PIL", "yaml"}
    assert not heavy & set(listed)
    assert all("pydantic" in one and "torch" not in one for one in commands)


def test_the_list_of_commands_shows_the_first_line_of_each_docstring():
    for name, (_, _, text) in cli.COMMANDS.items():
        assert cli.load_command(name).help.splitlines()[0] == text, name


def test_the_version_is_the_packages():
    result = CliRunner().invoke(cli.app, ["--version"])
    assert result.exit_code == 0 and result.output.startswith("attrib 0.")


def test_without_arguments_five_questions_have_their_commands():
    result = CliRunner().invoke(cli.app, [])
    assert result.exit_code == 0
    named = set(re.findall(r"attrib ([a-z]+)", result.output))
    assert len(named) >= 5 and named <= set(cli.COMMANDS)


def test_the_shell_completes_commands():
    ask = {"_ATTRIB_COMPLETE": "complete_bash", "COMP_WORDS": "attrib ex", "COMP_CWORD": "1"}
    result = CliRunner().invoke(cli.app, [], prog_name="attrib", env=ask)
    assert "explore" in result.output.split()


NO_PHOTO = ("evaluate", "faithfulness", "gate", "report", "select")
READS_ANSWER = (  # of one photo
    "attention", "contributions", "deletion", "edit", "explore", "export-model", "heatmap",
    "patching", "sweep",
)  # fmt: skip


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_shows_what_a_command_has_and_nothing_else(command):
    text = CliRunner().invoke(cli.app, [command, "--help"], env={"COLUMNS": "200"}).output
    assert command in text and "Undefined" not in text and "PydanticUndefined" not in text
    assert ("--target " in text) == (command in READS_ANSWER)
    assert ("for --key gold" in text) <= ("--key " in text)
    if command in NO_PHOTO:
        assert "--data " in text and "One photo" not in text and "--image " not in text
    if command == "grid":
        assert "runs/grid-" in text and "--layers" not in text and "--seed " not in text


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("gate", "--prompt", "x"), "--prompt: gate needs a dataset: give --data instead"),
        (("evaluate", "--prompt", "x"), "--prompt: evaluate needs edits with the inputs"),
        (("select", "--prompt", "x"), "select needs many examples: give --data"),
        (("attention", "--prompt", "x", "--target", "y"), "--target: attention reads no answer"),
        (("attention", "--prompt", "x", "--data", "y"), "leave out --data, or --prompt"),
        (("sweep", "--prompt", "x", "--image-root", "y", "--limit", "2"), "out --image-root, --l"),
        (("grid", "--layers", "text:1"), "--layers: grid trains at each layer; give --text"),
        (("grid", "--seed", "1"), "--seed: grid trains with several seeds"),
        (("grid", "--tensorboard"), "--tensorboard: grid writes no curves"),
        (("select", "--from", "x", "--model", "m", "--dry-run"), "leave out --dry-run, --model"),
        (("report", "--from", "x", "--pointing", "3"), "computes nothing; leave out --pointing"),
        (("contributions", "--prompt", "x", "--target", "y"), "--target is read with --key gold"),
        (("sweep", "--modality", "visual", "--exclude-last"), "the last prompt token is text"),
        (("data", "check", "x", "--pixels", "header"), "--pixels: images are checked with --im"),
        (("edit", "--editor", "e", "--prompt", "x", "--load", "l", "--target", "y"), "of --load"),
        (("explore",), "--prompt: give a question"),
        (("explore", "--prompt", "x", "--target", "y"), "--target: it belongs to an edit"),
        (("explore", "--prompt", "x", "--edit", "e", "--compare", "m"), "--edit or --compare"),
        (("explore", "--prompt", "x", "--image", "lost.png"), "--image: 'lost.png': no such file"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(run, arguments, told):
    code, out, err = run(*arguments)
    assert code == 2 and out == "" and told in err and err.count("\n") == 1


def test_a_next_command_can_be_pasted(run):
    options = TrainOptions(
        model="my models/x", dtype="bfloat16", data="a b", split="caption-train", image_root="im g"
    )
    line = _evaluation(options, Path("out put"))
    typed = shlex.split(line)
    assert typed[:2] == ["attrib", "evaluate"] and typed[2:] == [
        "--model", "my models/x", "--dtype", "bfloat16", "--editor", "out put", "--data", "a b",
        "--split", "caption-eval", "--image-root", "im g",
    ]  # fmt: skip
    code, _, err = run(*typed[1:], "--dry-run")  # every option is one of the command
    assert code in (2, 3) and "option" not in err
    grid = GridOptions(data="/a/b c")
    assert default_out("grid", grid) == Path("runs/grid-dualedit-tiny-llava--a-b-c")


def test_a_command_that_there_is_not_is_wrong_usage():
    assert CliRunner().invoke(cli.app, ["divine"]).exit_code == 2


def test_contributions_about_a_photo_leave_result_figure_and_manifest(run, model, photo, tmp_path):
    code, out, err = run("contributions", "--model", model, "--image", photo, *PHOTO, "--out", "o")
    assert code == 0 and "key token" in out
    names = {p.name for p in (tmp_path / "o").iterdir()}
    assert names == {
        "result.parquet", "contributions.svg", "contributions.png", "contributions.pdf",
        "manifest.json", "parts",
    }  # fmt: skip
    result = Result.load(tmp_path / "o" / "result.parquet")
    assert result.examples == 1 and len(result.frame) == 4 * 2
    manifest = json.loads((tmp_path / "o" / "manifest.json").read_text())
    assert manifest["options"]["key"] == "argmax" and manifest["invocation"].startswith("attrib c")
    assert len(manifest["model"]["weights_sha256"]) == 64
    assert "Loading" not in err


@pytest.mark.usefixtures("unrendered")
def test_attention_and_text_alone_work_as_well(run, model, tmp_path):
    code, out, _ = run("attention", "--model", model, "--prompt", "Two and two is")
    assert code == 0 and "no visual tokens" in out
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("attention-") and "-photo-" in folder.name
    assert (folder / "attention-share.svg").exists()


@pytest.mark.usefixtures("unrendered")
def test_bad_rows_are_quarantined_by_name_and_the_others_used(run, model, folder, tmp_path):
    arguments = ("contributions", "--model", model, "--data", folder, "--split", "vqa-train")
    code, out, err = run(*arguments, "--out", "o", "--key", "wrong")
    assert code == 0 and "samples used: 2, rows quarantined: 5" in out
    lines = (tmp_path / "o" / "quarantined.csv").read_text().splitlines()
    assert lines[0] == "file,row,field,reason" and len(lines) == 6
    told = "\n".join(lines)
    for number, reason in enumerate(["no such file", "empty file", "not an image", "leads out"], 2):
        assert f"{folder}/vqa/vqa_train.json,{number},image," in told and reason in told
    assert ",6," in told and "<image>" in told
    assert "quarantined:" in err


@pytest.mark.usefixtures("unrendered")
def test_more_failures_than_allowed_is_exit_1_with_all_results_there(run, model, folder, tmp_path):
    arguments = ("attention", "--model", model, "--data", folder, "--split", "vqa-train")
    assert exit_code_for([BAD] * 5, 5) == exit_code_for([BAD] * 5, None) == 0
    code, _, err = run(*arguments, "--max-failures", 4, "--out", "b")
    assert code == 1 and "more than --max-failures 4" in err
    assert Result.load(tmp_path / "b" / "result.parquet").examples == 2


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--image", "nowhere.jpg", *PHOTO], 2, "--image: 'nowhere.jpg': no such file"),
        (["--image", "photo.png"], 2, "--image and --target need a --prompt"),
        ([*PHOTO, "--key", "gold"], 2, "no target"),
        ([*PHOTO, "--key", "nonsense"], 2, "expected argmax, gold, wrong or token:WORD"),
        ([*PHOTO, "--key", "wrong"], 3, "no sample has a wrong answer"),
        (["--data", "nowhere"], 2, "no data 'nowhere'"),
        (["--data", "scenes-vqa", "--split", "nope"], 2, "nope"),
        (["--model", "no-such-model", *PHOTO], 3, "unknown model 'no-such-model'"),
        (["--device", "cuda:77", *PHOTO], 3, "cuda:77"),
    ],
)
def test_mistakes_are_one_line_and_an_exit_code(run, model, arguments, code, told):
    given = arguments if "--model" in arguments else ["--model", model, *arguments]
    got, _, err = run("contributions", *given)
    assert (got, told in err, "Traceback" in err) == (code, True, False), err
    assert sum(line.startswith("attrib: ") for line in err.splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        (("heatmap", "--out", "o"), "--image"),
        (("patching", "--out", "o"), "--other-image"),
        (("edit", "--editor", "none", "--target", "red"), "--image"),
        (("edit", "--editor", "none", "--target", "red"), "--unrelated-image"),
    ],
)
def test_a_lost_photo_is_told_before_a_model_is_loaded(run, tmp_path, command, flag):
    given = ("--model", "no-such-model", *PHOTO, flag, "lost.jpg")
    code, _, err = run(*command, *given)
    assert code == 2 and f"attrib: {flag}: 'lost.jpg': no such file" in err
    assert not (tmp_path / "o").exists()


def test_unknown_flags_and_values_are_usage_errors(run):
    assert run("contributions", "--nonsense")[0] == 2
    assert run("contributions", "--norm", "loud")[0] == 2
    assert run("contributions", "--limit", "0")[0] == 2
    assert run("nonsense")[0] == 2


def test_a_config_file_sets_options_and_flags_override_it(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("norm: final\nbatch-size: 2\nkey: gold\n")
    options = resolve(ContributionOptions, path, {"key": "wrong"})
    assert (options.norm, options.batch_size, options.key) == ("final", 2, "wrong")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("norms: final", "c.yaml: norms: Extra inputs are not permitted; known are model"),
        ("norm: loud", "c.yaml: norm: Input should be 'none', 'final' or 'frozen'"),
        ("limit: 0", "c.yaml: limit: Input should be greater than or equal to 1"),
        ("- a list", "expected options as `name: value`"),
        ("key: !!python/object/apply:os.system [echo]", "no plain YAML"),
        ("a: [", "no plain YAML"),
    ],
)
def test_a_wrong_config_file_names_what_is_wrong(tmp_path, text, told):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(AttribError) as error:
        resolve(ContributionOptions, path, {})
    assert told in str(error.value)


def test_a_config_file_that_is_not_there_is_named(run):
    code, _, err = run("attention", "--config", "nowhere.yaml")
    assert code == 2 and "nowhere.yaml: No such file" in err


@pytest.mark.usefixtures("unrendered")
def test_a_config_file_works_on_the_command_line(run, model, tmp_path):
    (tmp_path / "c.yaml").write_text(f"model: {model}\nprompt: Two and two is\nout: x\n")
    assert run("contributions", "--config", "c.yaml", "--norm", "frozen")[0] == 0
    manifest = json.loads((tmp_path / "x" / "manifest.json").read_text())
    assert manifest["options"]["norm"] == "frozen"


def pressed():
    raise KeyboardInterrupt  # as Ctrl-C does; a shell's background jobs ignore the signal itself


def terminated():
    signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize(("stop", "expected"), [(pressed, 130), (terminated, 143)])
def test_an_interruption_leaves_with_its_code_and_the_command_to_repeat(
    run, monkeypatch, stop, expected
):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("attrib.pipeline.source.load_model", lambda _options: stop())
    code, _, err = run("attention", *PHOTO)
    assert code == expected and signal.getsignal(signal.SIGTERM) is before
    assert "interrupted; to continue: attrib attention --prompt 'The animal is a'" in err


def test_other_options_make_other_folders_and_the_same_make_the_same():
    def folder(**options):
        return str(default_folder("contributions", ContributionOptions(**options)))

    assert folder() == folder(batch_size=3) != folder(norm="final")
    assert folder(model="../../etc/passwd;rm -rf").startswith(
        "runs/contributions-etc-passwd-rm--rf-"
    )


def test_errors_become_exit_codes(capsys):
    assert exit_code(SetupError("no\nmodel")) == 3
    assert capsys.readouterr().err == "attrib: no model\n"
    assert exit_code(AttribError("x")) == 2
    assert exit_code(PermissionError(13, "Permission denied", "out")) == 3
    assert "out: Permission denied" in capsys.readouterr().err
    assert exit_code(torch.OutOfMemoryError("CUDA")) == 3
    assert "--batch-size" in capsys.readouterr().err


def test_a_mistake_of_ours_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        exit_code(ZeroDivisionError())


def test_cells_that_spreadsheets_would_run_are_made_inert(tmp_path):
    (path,) = write_quarantined(tmp_path, [Quarantined("f", 1, "src", "=HYPERLINK(1)")])
    assert "'=HYPERLINK(1)" in path.read_text()
    assert write_quarantined(tmp_path, []) == [] and not path.exists()


@pytest.mark.parametrize(
    ("names", "first"),
    [
        (["result.parquet", "a.svg", "a.png", "b.png", "manifest.json"], "a.png"),
        (["table.md", "scores.csv", "table.html", "learning.png"], "table.html"),
        (["differences.csv", "manifest.json"], "differences.csv"),
        (["result.parquet", "manifest.json"], None),
    ],
)
def test_a_list_of_files_ends_with_the_one_to_open(capsys, names, first):
    print_files([Path("o") / name for name in names])
    lines = capsys.readouterr().out.splitlines()
    assert [line.strip() for line in lines[: len(names)]] == [str(Path("o") / n) for n in names]
    assert lines[len(names) :] == ([] if first is None else [f"open {Path('o') / first}"])


def test_models_list_and_check(run, model):
    assert run("models", "list")[0] == 0
    code, out, _ = run("models", "check", model)
    assert code == 0 and "checks pass" in out and "BROKEN" not in out
    code, _, err = run("models", "check", model, "--device", "cpu", "--device-map", "auto")
    assert code == 3 and "device 'cpu' and a device_map are given: give one of them" in err
    code, _, err = run("models", "check", model, "--revision", "abc")
    assert code == 3 and "a folder has no revisions; leave revision 'abc' out" in err


def test_models_assemble_names_the_part_that_is_missing(run, tmp_path):
    parts = [f"--{part}={tmp_path}" for part in ("llm", "blip2", "projection")]
    code, _, err = run("models", "assemble", "minigpt4", *parts, "--out", tmp_path / "out")
    assert code == 3 and "no config.json" in err
    assert run("models", "assemble", "gpt4", *parts, "--out", "out")[0] == 2


def test_data_make_says_what_it_wrote(run, monkeypatch, tmp_path):
    def export_folder(out, seed, limit):
        assert limit is None
        return ExportResult(out, {"vqa-train": 2000 + seed}, written=3, kept=1)

    monkeypatch.setattr("attrib.data.scenes.export.export_folder", export_folder)
    code, out, _ = run("data", "make", "scenes", "--out", tmp_path / "s", "--seed", 7)
    assert code == 0 and "vqa-train: 2007 edits" in out and "3 images written" in out


def test_data_check_reports_and_fails_on_unsound_data(run, folder):
    code, out, _ = run("data", "check", folder, "--image-root", folder / "images")
    assert code == 1 and "vqa-train" in out and "missing.jpg" in out
    assert run("data", "check", "nowhere")[0] == 2


def test_doctor_names_versions_and_devices(run):
    _, out, _ = run("doctor")
    assert "torch" in out and "CPU" in out and "embedded models" in out


def test_demo_writes_a_report_about_what_it_saw(run, model, tmp_path):
    code, out, _ = run("demo", "--model", model, "--limit", 3, "--out", "demo")
    assert code == 0 and "report.html" in out
    names = {p.name for p in (tmp_path / "demo").iterdir()}
    assert {"report.html", "contributions.parquet", "wrong_key.parquet", "attention.parquet",
            "answers.parquet", "manifest.json"} <= names  # fmt: skip
    page = (tmp_path / "demo" / "report.html").read_text()
    assert f"attrib demo --model {model} --data scenes-vqa" in page
    assert page.count("data:image/png;base64,") == 3
    assert (tmp_path / "demo" / "explore.html").stat().st_size < 5e6


def test_explore_writes_a_page_and_says_what_decides(run, model, photo, tmp_path):
    asked = ("--image", photo, "--prompt", "What is it?", "--max-new-tokens", 2)
    code, out, _ = run("explore", "--model", model, *asked, "--out", "page.html")
    assert code == 0 and "page.html" in out and "The model says" in out
    assert (tmp_path / "page.html").read_text().startswith("<!DOCTYPE html>")


def test_python_m_attrib_is_the_same_program():
    done = subprocess.run(
        [sys.executable, "-m", "attrib", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("attrib ")


@pytest.mark.usefixtures("unrendered")
def test_a_sweep_reaches_the_forward_pass_through_at_most_eight_files(
    run, model, folder, monkeypatch
):
    root, paths = str(Path(attrib.__file__).parent), []
    forward = LlavaForConditionalGeneration.forward

    def traced(self, *args, **kwargs):
        frames = [frame.filename for frame in traceback.extract_stack()]
        paths.append(list(dict.fromkeys(name for name in frames if name.startswith(root))))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(LlavaForConditionalGeneration, "forward", traced)
    data = ("--data", folder, "--split", "vqa-train", "--limit", "1")
    sweep = ("--modality", "text", "--sigmas", "1", "--layers", "0")
    code, _, _ = run("sweep", "--model", model, *data, *sweep)
    assert code == 0
    measured = [path for path in paths if any(name.endswith("sensitivity.py") for name in path)]
    assert measured
    assert max(map(len, measured)) <= 8
