"""The report on layers in a real browser: both themes, wide and narrow, mouse and keyboard."""

import planted_layer_report as planted
import pytest
from browser import BROWSER, browser
from planted_layer_report import EVIL

from attrib.report.layer_report import layer_page
from attrib.report.render import render_html

pytest.importorskip("websocket", reason="no websocket-client to drive a browser with")
pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="no Chromium here; un-skip by installing one"),
    # The library leaves its socket to the collector when a test fails.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
SHOWN = "document.querySelector('.layer-name:not([hidden])').textContent"
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
OPEN_ALL = "document.querySelectorAll('details').forEach(one => { one.open = true })"
BACKGROUND = "getComputedStyle(document.body).backgroundColor"


@pytest.fixture(scope="module")
def tab():
    with browser() as page:
        yield page


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A page whose prompts, names and commands are hostile and long."""
    command = f"attrib select --model '{EVIL}' --data {'long' * 60}"
    study = planted.study(
        prompt=f"{EVIL} {'endless' * 50}", name=EVIL, file=EVIL, number=3,
        grid=("g.csv", planted.grid()), commands={"Reproduce": [command]},
    )  # fmt: skip
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render_html(layer_page(study)))
    return path


@pytest.fixture
def opened(tab, report):
    """The page in a light, wide window, no complaint yet."""
    tab.complaints.clear()
    tab.open(report)
    return tab


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 400])
def test_no_complaint_and_no_overflow(tab, report, width, dark):
    tab.complaints.clear()
    tab.open(report, width, dark=dark)
    assert tab.value(OVERFLOW) <= 0
    tab.value(OPEN_ALL)
    assert tab.value(OVERFLOW) <= 0
    assert tab.complaints == []
    assert (tab.value(BACKGROUND) == "rgb(20, 24, 28)") is dark


def test_a_wide_page_and_a_forbidden_script_would_be_noticed(tab, tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text(
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'">'
        '<script>1</script><div style="width: 3000px">wide</div>'
        '<pre>' + "wide" * 1000 + "</pre>"
    )  # fmt: skip
    tab.complaints.clear()
    tab.open(bad)
    assert tab.value(OVERFLOW) > 0 and tab.complaints


def test_hostile_text_runs_nothing(opened):
    assert opened.value("document.querySelectorAll('script').length") == 1
    assert opened.value("document.querySelectorAll('img[src=x]').length") == 0
    assert EVIL in opened.value("document.querySelector('.finding').textContent")


def test_the_slider_works_by_keyboard(opened):
    first = opened.value(SHOWN)
    for _ in range(40):  # by Tab alone, as one does without a mouse
        if opened.value("document.activeElement.id") == "layer":
            break
        opened.press("Tab")
    assert opened.value("document.activeElement.id") == "layer"
    opened.press("ArrowRight")
    second = opened.value(SHOWN)
    opened.press("End")
    assert first != second and opened.value(SHOWN).startswith("Layer 11")
    opened.press("Home")
    assert opened.value(SHOWN).startswith("Layer 0")
    said = opened.value("document.activeElement.getAttribute('aria-valuetext')")
    assert said.startswith("Layer 0")
    assert opened.complaints == []


def test_the_slider_works_by_mouse_and_shows_one_map_per_image(opened):
    opened.value("document.getElementById('layer').scrollIntoView({block: 'center'})")
    box = "document.getElementById('layer').getBoundingClientRect()"
    right, middle = (
        opened.value(f"{box}.right - 4"),
        opened.value(f"({box}.top + {box}.bottom) / 2"),
    )
    opened.click(right, middle)
    assert opened.value(SHOWN).startswith("Layer 11")
    maps = "[...document.querySelectorAll('.over')].filter(one => one.offsetParent !== null)"
    assert opened.value(f"{maps}.length") == 2
    assert all("layer 11" in alt for alt in opened.value(f"{maps}.map(one => one.alt)"))


def test_without_script_the_chosen_layer_is_shown(tab, report):
    tab.open(report, script=False)
    shown = tab.value(SHOWN)
    assert "chosen for the text tokens and the visual tokens" in shown
    assert tab.value("document.getElementById('slider').offsetParent === null")
    tab.open(report)  # the control: with script the slider is there
    assert tab.value("document.getElementById('slider').offsetParent !== null")


def test_printed_details_are_open_and_the_slider_is_gone(opened, tmp_path):
    shown = "document.querySelector('details table').checkVisibility()"
    assert not opened.value(shown)
    opened.call("Emulation.setEmulatedMedia", media="print")
    assert opened.value(shown)
    assert opened.value("document.getElementById('slider').offsetParent === null")
    opened.call("Emulation.setEmulatedMedia", media="")
    opened.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
