"""The explorer in a real browser: every control by mouse and by keyboard, wide and narrow."""

import time

import pytest
from browser import BROWSER, browser, click, wait
from explored import EVIL, explored, paired

pytest.importorskip("websocket", reason="no websocket-client to drive a browser with")
pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="no Chromium here; un-skip by installing one"),
    # The library leaves its socket to the collector when a test fails.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
LAYER = "document.querySelector('.layer-bar output').textContent"
FINDING = "document.querySelector('.side .finding').textContent"
CURRENT = "document.querySelector('.lens-table tr.current th').textContent"


@pytest.fixture(scope="module")
def tab():
    with browser() as page:
        yield page


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explorer")
    return [explored().save(folder / "one.html"), paired().save(folder / "two.html")]


def opened(tab, path, **settings):
    tab.complaints.clear()
    tab.open(path, **settings)
    wait(tab, "document.documentElement.dataset.ready")
    return tab


@pytest.fixture(scope="module")
def one(tab, pages):
    """The page of one side, opened once: no test depends on what another one has chosen."""
    return opened(tab, pages[0])


def focus(tab, selector):
    """Press Tab from the top until the element has the focus, as one does without a mouse."""
    tab.value("document.querySelector('header button').focus()")
    for _ in range(60):
        tab.press("Tab")
        if tab.value(f"document.activeElement.matches({selector!r})"):
            return
    raise AssertionError(f"{selector} is not reached by Tab")


def test_hostile_text_runs_nothing_and_is_shown(one):
    assert one.value("document.querySelectorAll('script').length") == 2
    assert one.value("document.querySelectorAll('img[src=x]').length") == 0
    assert EVIL.replace("\u202e", "\\u202e") in one.value("document.title")
    assert "onerror" in one.value("document.querySelector('pre').textContent")
    assert one.complaints == []


def test_answer_and_prompt_tokens_by_mouse_and_by_keyboard(one):
    click(one, "button.chip")  # the first word of the prompt that can be looked at
    assert "expects" in one.value(FINDING)
    assert one.value("document.querySelector('button.chip').getAttribute('aria-pressed')") == "true"
    one.press("End")
    assert "The model says" in one.value(FINDING)
    one.press("Home")
    one.press("ArrowRight")
    assert one.value("document.activeElement.dataset.query") == "1"
    assert one.complaints == []


def test_layers_by_slider_table_chart_and_small_picture(one):
    focus(one, ".layer")
    one.press("Home")
    assert one.value(LAYER).startswith("0 of") and one.value(CURRENT) == "0"
    one.press("ArrowRight")
    assert one.value(LAYER).startswith("1 of") and one.value(CURRENT) == "1"
    click(one, ".lens [data-layer='4']")
    assert one.value(LAYER).startswith("4 of")
    one.press("ArrowDown")
    assert one.value(LAYER).startswith("5 of")
    click(one, ".contributions .chart")  # its middle
    middle = one.value(LAYER)
    assert middle.startswith(("4 of", "5 of"))
    click(one, "[data-value=all]")
    assert (
        one.value("document.querySelectorAll('.mini').length") == explored().sides[0].vlm.num_layers
    )
    click(one, ".mini[data-layer='2']")
    assert one.value(LAYER).startswith("2 of")
    assert one.complaints == []


def test_maps_scales_and_theme(one):
    click(one, ".answer .chip")
    canvas = "document.querySelector('.frame canvas').toDataURL()"
    attention = one.value(canvas)
    focus(one, "[aria-label='What the map shows'] button")
    one.press("ArrowRight")
    assert one.value(canvas) != attention  # the perturbation heatmap
    one.press("ArrowRight")
    assert one.value("document.querySelector('.frame canvas').style.visibility") == "hidden"
    click(one, "[data-value=attention]")
    click(one, "[data-value=same]")
    assert one.value(canvas) != attention  # one scale for all layers
    shares = one.value("document.querySelector('.contributions .chart').innerHTML")
    click(one, "[data-value=paper]")
    assert one.value("document.querySelector('.contributions .chart').innerHTML") != shares
    click(one, "[data-value=dark]")
    assert one.value("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 28)"
    assert one.complaints == []


def test_visual_tokens_by_mouse_and_by_keyboard(one):
    title = "document.querySelector('.readout').textContent"
    assert "Visual token" in one.value(title)  # the one that is read most
    click(one, ".frames .frame", at=0.55)
    assert "row 4, column 4" in one.value(title)  # of 6 by 6
    one.value("document.querySelector('.frames .frame').focus()")
    one.press("ArrowLeft")
    assert "row 4, column 3" in one.value(title)
    cells = one.value("document.querySelectorAll('.token tbody tr').length")
    assert cells == explored().sides[0].vlm.num_layers
    assert one.complaints == []


def test_numbers_open_and_are_copied_as_csv(one):
    click(one, ".contributions summary")
    rows = "document.querySelectorAll('.contributions tbody tr').length"
    assert wait(one, rows) == explored().sides[0].vlm.num_layers
    one.value("navigator.clipboard.writeText = async (text) => { window.copied = text }")
    click(one, ".contributions .small")
    text = one.value("window.copied")
    seen = explored().sides[0]
    lines = text.splitlines()
    assert lines[0].startswith("layer,") and len(lines) == 1 + seen.vlm.num_layers
    numbers = [float(cell) for cell in lines[1].split(",")]
    query = one.value("document.querySelector('.chip[aria-pressed=true]').dataset.query")
    assert numbers[1:3] == pytest.approx(seen.shares[int(query), 0], rel=1e-6)


def test_two_sides_move_together_and_can_be_shown_alone(tab, pages):
    two = opened(tab, pages[1])
    assert two.value("document.querySelectorAll('.side').length") == 2
    outputs = "[...document.querySelectorAll('.layer-bar output')].map(one => one.textContent)"
    click(two, ".side .lens [data-layer='3']")
    assert {text[:4] for text in two.value(outputs)} == {"3 of"}
    click(two, "[data-value='2']")
    visible = "[...document.querySelectorAll('.side')].map(one => one.checkVisibility())"
    assert two.value(visible) == [False, True]
    text = two.value("document.querySelector('.questions').textContent")
    assert "gate is open" in text and "Of 2 other questions" in text
    assert two.complaints == []


def test_a_broken_page_says_so(tab, tmp_path):
    html = explored().html
    start = html.index('id="data">') + 10
    (tmp_path / "bad.html").write_text(html[:start] + "AAAA" + html[start + 4 :])
    tab.complaints.clear()
    tab.open(tmp_path / "bad.html")
    assert wait(tab, "document.body.textContent.includes('could not be drawn')")
    for _ in range(100):  # the browser reports the error a little later
        if tab.complaints:
            break
        time.sleep(0.05)
        tab.value("0")
    assert tab.complaints


@pytest.mark.parametrize("number", [0, 1])
def test_no_complaint_and_no_overflow_wide_or_narrow_light_or_dark(tab, pages, number):
    opened(tab, pages[number], width=400, dark=True)
    for width, dark in ((400, True), (2000, False)):
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        tab.call("Emulation.setEmulatedMedia", features=scheme)
        tab.call("Emulation.setDeviceMetricsOverride", width=width, height=900,
                 deviceScaleFactor=1, mobile=False)  # fmt: skip
        assert tab.value(OVERFLOW) <= 0
        background = tab.value("getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(20, 24, 28)") is dark
        tab.value("document.querySelectorAll('details').forEach(one => { one.open = true })")
        tab.value("document.querySelectorAll('[data-value=all]').forEach(one => one.click())")
    assert tab.value(OVERFLOW) <= 0
    assert tab.complaints == []
