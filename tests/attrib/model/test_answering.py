"""One call for one question: the answer that encode and generate give."""

from pathlib import Path

from explored import tiny
from PIL import Image

import attrib

SAMPLE = Path(__file__).parents[3] / "docs" / "sample.png"
PROMPT = "What color is the star? The answer is:"


def test_an_answer_is_that_of_encode_and_generate():
    with Image.open(SAMPLE) as image:
        batch = tiny().encode([image.convert("RGB")], [PROMPT])
        given = [image.convert("RGB"), SAMPLE, str(SAMPLE), [SAMPLE]]
    assert [attrib.answer(tiny(), one, PROMPT) for one in given] == ["blue"] * 4
    assert tiny().generate(batch) == ["blue"]
    assert attrib.answer(tiny(), None, PROMPT, max_new_tokens=1) != ""
