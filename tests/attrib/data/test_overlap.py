"""Repeated rows and locality items of a split."""

from attrib.data.easyedit import ELEVEN
from attrib.data.overlap import repeats


def test_repeated_text_locality_is_counted_like_visual_locality():
    rows = [
        dict.fromkeys(ELEVEN, "x") | {"loc": loc, "src": str(i)} for i, loc in enumerate("abab")
    ]
    found = repeats(rows)
    assert found["loc repeated"] == 2 and found["(loc, loc_ans) repeated"] == 2
    assert found["(m_loc, m_loc_q) repeated"] == 3
