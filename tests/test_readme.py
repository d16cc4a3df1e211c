"""README and docs: short, with commands, links and Python that work as they stand."""

import re
import shlex
from functools import cache
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
WORDS = 900
PROGRAMS = ("attrib", "python", "torchrun", "accelerate", "make")


@cache
def disarmed(program, name):
    """A command that parses its arguments and runs nothing."""
    if program == "attrib":
        from attrib.cli import COMMANDS, load_command

        assert name in COMMANDS, f"there is no attrib {name}"
        command = load_command(name)
    else:
        from figures.__main__ import add_to

        add_to(app := typer.Typer())
        command = typer.main.get_command(app)
    for leaf in getattr(command, "commands", {"": command}).values():
        leaf.callback = lambda **_: None
    return command


def check_command(line, *, complete=True):
    """Parse a command line without running it: programs, commands, options and values exist.

    Prose may name a command without what it needs (`complete=False`).
    """
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        assert all(re.search(rf"(?m)^{target}:", (ROOT / "Makefile").read_text())
                   for target in words[1:])  # fmt: skip
        return
    if "-m" in words:  # python -m MODULE, torchrun -m MODULE, accelerate launch -m MODULE
        words = words[words.index("-m") + 1 :]
    if words[0] not in ("attrib", "figures"):
        file = ROOT / words[0].replace(".", "/")
        assert file.is_dir() or file.with_suffix(".py").is_file(), line
        return
    program, *arguments = words
    if arguments and arguments[0].startswith("-"):
        return
    name = arguments.pop(0) if program == "attrib" else "figures"
    try:
        disarmed(program, name).main(arguments, prog_name=name, standalone_mode=False)
    except Exception as error:  # of the copy of click that typer brings along
        if not hasattr(error, "format_message"):
            raise
        if not complete and re.match("Missing|.* requires an argument", error.format_message()):
            return
        raise AssertionError(f"{line}: {error.format_message()}") from None
    for word in arguments:
        if word.endswith((".png", ".jpg")):
            assert (ROOT / word).is_file(), f"{line}: there is no {word}"


def commands(page):
    """The commands of a page, and whether they are meant to be typed: lines, or spans in prose."""
    text = re.sub(r"(?s)```.*?```", "", page.read_text())
    lines = re.findall(r"(?m)^    (\S.*)$", text)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"\s*\n\s*", " ", text))
    for line, typed in (*((line, True) for line in lines), *((span, False) for span in spans)):
        words = line.split()
        placeholder = re.search(r"\.\.\.|[A-Z]{4}", line) or line == "accelerate launch"
        if words[0] in PROGRAMS and len(words) > 1 and not placeholder:
            yield line, typed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_exists_with_its_options(page):
    for line, typed in commands(page):
        check_command(line, complete=typed)


def test_the_readme_is_short_and_shows_commands_with_their_times():
    text = README.read_text()
    assert len(text.split()) <= WORDS
    timed = re.findall(r"(?m)^\| `(attrib [^`]+)` .*\| ([\d.]+ (?:s|min)) \|$", text)
    assert len(timed) == 4
    assert not any("sequence_last" in command for command, _ in timed)  # it reads the answer


def test_the_python_example_runs_and_draws_its_plot(monkeypatch, capsys, tmp_path):
    (code,) = re.findall(r"(?s)```python\n(.*?)```", README.read_text())
    assert len([line for line in code.splitlines() if line]) <= 10
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README", "exec"), {"__name__": "example"})
    assert re.search(r"layers? \d.*\n\['", capsys.readouterr().out)
    assert (tmp_path / "contributions.png").stat().st_size > 10_000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("line", ["attrib sweep --modality smell", "attrib nothing", "make tea",
                                  "attrib heatmap --imagine x", "python -m nowhere"])  # fmt: skip
def test_wrong_commands_are_noticed(line):
    with pytest.raises(AssertionError):
        check_command(line)
