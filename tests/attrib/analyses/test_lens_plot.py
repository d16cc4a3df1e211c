"""The figure of the logit lens: what a cell says is what the lens says."""

import numpy as np
import pytest
from conftest import examples, tiny_vlm
from explored import QUESTION, scene, tiny

import attrib
from attrib import plots
from attrib.errors import AttribError


@pytest.fixture(scope="module")
def lens():
    return attrib.logit_lens(tiny(), tiny().encode([scene()], [QUESTION]), layers=[0, 5, 9])


def test_cells_hold_the_likeliest_tokens_and_their_probabilities(lens):
    ax = lens.plot()
    (drawn,) = ax.get_images()
    at = (lens.batch["text"] | lens.batch["last"])[0].nonzero()[:, 0].tolist()[-12:]
    np.testing.assert_allclose(drawn.get_array(), lens.probabilities[0][:, at, 0], rtol=1e-6)
    cells = {(round(t.get_position()[1]), round(t.get_position()[0])): t.get_text()
             for t in ax.texts}  # fmt: skip
    assert len(cells) == 3 * len(at)
    for (row, column), text in cells.items():
        token = lens.tokens[0, row, at[column], 0].item()
        assert text == (tiny().tokenizer.decode([token]).strip()[:11] or "\u00b7")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0", "5", "9"]
    # The last layer at the last token is the model's own answer.
    answer = tiny().last_logits(lens.batch).softmax(-1)[0]
    assert drawn.get_array()[-1, -1] == pytest.approx(answer.max().item(), rel=1e-4)
    assert tiny().tokenizer.decode([int(answer.argmax())]).strip() == cells[2, len(at) - 1]
    assert "layer 9: " in plots.describe(ax)


def test_positions_can_be_chosen_and_wrong_ones_are_refused(lens):
    visual = lens.batch["visual"][0].nonzero()[:2, 0].tolist()
    assert len(lens.plot(positions=visual).texts) == 2 * 3
    with pytest.raises(AttribError, match="example 1: the batch has examples 0 to 0"):
        lens.plot(example=1)
    with pytest.raises(AttribError, match=r"positions \[9999\]"):
        lens.plot(positions=[9999])


def test_tokens_of_any_bytes_are_drawn():
    vlm = tiny_vlm("llava")
    ax = attrib.logit_lens(vlm, vlm.encode(*examples())).plot(example=1)
    assert all(text.get_text() for text in ax.texts)
