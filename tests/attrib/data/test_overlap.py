"""Repeated rows and locality items of a split."""

from attrib.data.easyedit import FIELDS
from attrib.data.overlap import EDIT, overlap, repeats, same_image


def test_repeated_text_locality_is_counted_like_visual_locality():
    rows = [
        dict.fromkeys(FIELDS, "x") | {"loc": loc, "src": str(i)} for i, loc in enumerate("abab")
    ]
    found = repeats(rows)
    assert found["loc repeated"] == 2 and found["(loc, loc_ans) repeated"] == 2
    assert found["(m_loc, m_loc_q) repeated"] == 3


def test_rows_with_several_images_share_each_of_them():
    a, b, c = "abc"
    train = [dict.fromkeys(FIELDS, "x") | {"image": (a, b), "m_loc": "place"}]
    other = dict.fromkeys(FIELDS, "x") | {"m_loc": ("other", "place")}
    rows = [other | {"image": image} for image in ((b, c), b, (a, b), c)]
    found = overlap(train, rows)
    assert found["image"] == found[EDIT] == 3 and found["image, unique"] == 2
    assert found["(m_loc, m_loc_q)"] == 4 and found["image as m_loc"] == 0
    assert overlap(rows, train)["image as m_loc"] == 0
    assert overlap(train, [other | {"image": (c, "place")}])["image as m_loc"] == 1
    assert same_image(other | {"image": (c, "place")}) and not same_image(rows[0])
    assert repeats(rows)[f"{EDIT} groups"] == 0  # an edit is about all its images
