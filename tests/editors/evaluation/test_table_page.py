"""The page of a comparison in a real browser: no column of a full table is cut off."""

from dataclasses import replace

import pandas as pd
import pytest
from browser import BROWSER, browser
from planted_scores import result

from editors.evaluation.comparison import Comparison

pytest.importorskip("websocket", reason="no websocket-client to drive a browser with")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium; un-skip by installing one")
METRICS = ("t_gen", "v_gen", "t_loc", "avg")
# By how much the widest table is wider than its box: what would have to be scrolled to.
HIDDEN = """Math.max(...[...document.querySelectorAll('.wide')].map(
    (box) => box.scrollWidth - box.clientWidth))"""


def full(rel):
    """Scores in all six metrics of the papers."""
    made = result(rel, "transformer-patcher", "prompt_last", protocols=("paper",))
    some = made.frame[made.frame["metric"] == "rel"]
    frames = [made.frame, *(some.assign(metric=metric) for metric in METRICS)]
    return replace(made, frame=pd.concat(frames, ignore_index=True))


def test_all_columns_are_seen_at_1280_and_a_phone_scrolls_to_them(tmp_path):
    page = tmp_path / "table.html"
    page.write_text(Comparison("m", "d", [full(0.5), full(0.75)], (), "attrib table").html())
    with browser() as tab:
        tab.open(page, 1280)
        assert tab.value("document.querySelectorAll('thead')[0].rows[0].cells.length") == 8
        assert tab.value(HIDDEN) <= 0 and not tab.complaints
        tab.open(page, 400)
        assert tab.value(HIDDEN) > 0  # a width that is too small would be noticed
