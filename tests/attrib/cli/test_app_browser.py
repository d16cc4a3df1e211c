"""The local app as its command starts it, driven in a browser; nothing leaves this machine."""

import json
import os
import re
import subprocess
import sys
import time
from importlib.util import find_spec
from urllib.parse import urlsplit

import pytest
from browser import BROWSER, browser, click, wait

pytest.importorskip("websocket", reason="no websocket-client to drive a browser with")
pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="no Chromium here; un-skip by installing one"),
    pytest.mark.skipif(
        find_spec("gradio") is None, reason="no Gradio here; un-skip by: pip install 'attrib[app]'"
    ),
    # The library leaves its socket to the collector when a test fails.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
# Writes down every address that the server connects to or looks up.
# A shell's background jobs ignore Ctrl-C, with all that they start, unless told otherwise.
WATCHED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
log = open(sys.argv.pop(1), "a", buffering=1)
def watch(event, args):
    if event == "socket.connect" and isinstance(args[1], tuple):
        print(args[1][0], file=log)
    if event == "socket.getaddrinfo":
        print(args[0], file=log)
sys.addaudithook(watch)
from attrib.cli import main
sys.argv[0] = "attrib"
main()
"""
LOOPBACK = {"127.0.0.1", "localhost", "::1", "0.0.0.0", "None"}
PATIENCE = 120  # seconds for an answer, on a machine that is busy with other things
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
EVIL = "<img src=x onerror=alert(1)> is it? The answer is:"


class App:
    """The running command: its address, its folder of uploads, what it connected to."""

    def __init__(self, folder):
        self.log, self.temporary = folder / "addresses", folder / "tmp"
        self.temporary.mkdir()
        self.process = subprocess.Popen(
            [sys.executable, "-c", WATCHED, self.log, "app", "--no-open", "--port", "0",
             "--max-upload", "100KB"],
            stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(self.temporary)},
        )  # fmt: skip
        said = self.process.stdout.readline()
        self.url = re.search(r"http://127\.0\.0\.1:\d+", said)[0]

    def close(self):
        """End it as Ctrl-C does; its exit code."""
        self.process.send_signal(2)
        code = self.process.wait(PATIENCE)
        self.process.stdout.close()
        return code


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    running = App(tmp_path_factory.mktemp("app"))
    yield running
    running.process.kill()
    running.process.wait()


@pytest.fixture(scope="module")
def tab(app):
    with browser() as page:
        yield opened(page, app.url)


def opened(tab, url, **settings):
    """The page at an address, once its picture is there and nothing moves any more."""
    tab.open(url, **settings)
    wait(tab, "document.querySelector('#photo img')?.complete", PATIENCE)
    wait(tab, "document.querySelector('#explore')?.checkVisibility()", PATIENCE)
    top, before = "document.querySelector('#explore').getBoundingClientRect().top", None
    while before != (before := tab.value(top)):
        time.sleep(0.5)
    tab.complaints.clear()
    return tab


def text(selector):
    return f"(document.querySelector('{selector}')?.innerText ?? '')"


def type_into(tab, selector, words):
    """Replace the text of a field by typing."""
    field = f"document.querySelector('{selector} textarea, {selector} input')"
    tab.value(f"{field}.focus(); {field}.select()")
    tab.call("Input.insertText", text=words)


def upload(tab, path):
    """Choose a file for the photo, as its dialog does."""
    if tab.value("document.querySelector('#photo [aria-label=Clear]') !== null"):
        click(tab, "#photo [aria-label=Clear]")
    wait(tab, "document.querySelector('#photo input[type=file]') !== null")
    root = tab.call("DOM.getDocument")["root"]["nodeId"]
    node = tab.call("DOM.querySelector", nodeId=root, selector="#photo input[type=file]")["nodeId"]
    tab.call("DOM.setFileInputFiles", files=[str(path)], nodeId=node)


def test_a_question_by_mouse_shows_the_answer_and_the_explorer(tab):
    click(tab, "#explore")
    said = wait(tab, text("#answer .said"), PATIENCE)
    assert re.fullmatch(r"blue, probability (100\.0|9\d\.\d)%", said.strip())
    frame = "document.querySelector('#explorer iframe')"
    assert tab.value(f"{frame}.sandbox.value") == "allow-scripts"
    assert tab.value(f"{frame}.clientHeight") > 400
    inside = tab.frame()
    for _ in range(PATIENCE):
        if tab.value("document.documentElement.dataset.ready", inside):
            break
        time.sleep(1)
    assert "The model says" in tab.value("document.body.innerText", inside)
    assert tab.value("document.querySelector('#download') !== null")
    assert tab.complaints == []


def test_a_question_by_keyboard(tab):
    type_into(tab, "#question", "What shape is red? The answer is:")
    tab.press("Tab")
    for _ in range(20):
        if tab.value("document.activeElement.id") == "explore":
            break
        tab.press("Tab")
    tab.press("Enter")
    assert wait(tab, f"{text('#answer')}.includes('ring')", PATIENCE)
    type_into(tab, "#question", "What color is the star? The answer is:")
    tab.press("Enter")
    assert wait(tab, f"{text('#answer')}.includes('blue')", PATIENCE)
    assert tab.complaints == []


def test_hostile_questions_and_broken_pictures_are_said_in_a_line(tab, tmp_path):
    type_into(tab, "#question", EVIL)
    click(tab, "#explore")
    wait(tab, "document.querySelector('#explorer iframe')?.srcdoc.includes('onerror')", PATIENCE)
    assert tab.value("document.querySelectorAll('img[src=x]').length") == 0
    type_into(tab, "#question", " ")
    click(tab, "#explore")
    assert wait(tab, text("#answer .problem"), PATIENCE) == "type a question"
    assert not tab.value("document.querySelector('#explorer iframe') !== null")
    type_into(tab, "#question", "What color is the star? The answer is:")
    (tmp_path / "page.png").write_text("<html>not found</html>")
    upload(tab, tmp_path / "page.png")
    wait(tab, "document.querySelector('#photo img') !== null", PATIENCE)
    click(tab, "#explore")
    assert wait(tab, f"{text('#answer')}.includes('not an image')", PATIENCE)


def test_an_edit_is_compared_on_other_questions(tab, app):
    opened(tab, app.url)
    click(tab, "button[role=tab]:nth-of-type(2)")
    wait(tab, "document.querySelector('#edit')?.checkVisibility()")
    type_into(tab, "#others", f"What shape is red? The answer is:\n{EVIL}")
    click(tab, "#edit")
    rows = wait(tab, "JSON.stringify([...document.querySelectorAll('.compared tbody tr')]"
                ".map(row => [...row.cells].map(cell => cell.innerText)))"
                ".replace(/^\\[\\]$/, '')", PATIENCE)  # fmt: skip
    edited, rephrased, other, evil = json.loads(rows)
    assert edited[1:3] == ["blue", "green"] and edited[4].endswith("holds")
    assert rephrased[1] == "blue" and "no gate" in rephrased[3]
    assert other[1:3] == ["ring", "ring"] and other[4].endswith("unchanged")
    assert evil[0].startswith(EVIL) and evil[4].split()[-1] in ("unchanged", "leaks")
    assert tab.value("document.querySelectorAll('img[src=x]').length") == 0
    assert tab.complaints == []
    click(tab, "button[role=tab]:nth-of-type(1)")
    wait(tab, "document.querySelector('#explore')?.checkVisibility()")
    click(tab, "#explore")  # the control: the model answers as before
    assert wait(tab, f"{text('#answer')}.includes('blue')", PATIENCE)


@pytest.mark.parametrize(("width", "dark"), [(400, True), (1280, False)])
def test_no_overflow_wide_or_narrow_light_or_dark(tab, app, width, dark):
    opened(tab, app.url, width=width, dark=dark)
    assert tab.value(OVERFLOW) <= 0
    click(tab, "#explore")
    wait(tab, text("#answer .said"), PATIENCE)
    assert tab.value(OVERFLOW) <= 0
    assert tab.value("document.body.classList.contains('dark')") is dark
    assert tab.complaints == []


def test_files_over_the_limit_are_refused(tab, tmp_path):
    (tmp_path / "large.png").write_bytes(bytes(200_000))
    upload(tab, tmp_path / "large.png")
    assert wait(tab, "document.body.innerText.includes('maximum')", PATIENCE)


def test_nothing_left_this_machine_and_no_file_stays(tab, app):
    asked = {urlsplit(url).hostname for url in tab.requests if url.startswith(("http", "ws"))}
    assert asked == {"127.0.0.1"}
    assert list(app.temporary.glob("attrib-app-*"))
    assert app.close() == 0
    contacted = set(app.log.read_text().split())
    assert "127.0.0.1" in contacted and contacted <= LOOPBACK
    assert not list(app.temporary.glob("attrib-app-*"))
    assert not list(app.temporary.rglob("*.png"))
