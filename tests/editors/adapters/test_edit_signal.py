"""What adapters see of an edit, against its definition."""

import pytest
import torch

from editors.adapters import EditAdapter
from editors.adapters.edit_signal import EMBED, edit_signal, pad_signals, signal_width, windows


@pytest.mark.parametrize("num", [0, 1, 3, 7])
@pytest.mark.parametrize("window", [1, 2, 5])
def test_every_position_shows_itself_and_those_before_it(num, window):
    states = torch.randn(num, 4)
    shown = windows(states, window).reshape(num, window, 4)
    for pos in range(num):
        for back in range(window):
            there = states[pos - back] if back <= pos else torch.zeros(4)
            assert torch.equal(shown[pos, back], there)


@pytest.mark.parametrize("kind", ["site", "embed", "both", "none"])
@pytest.mark.parametrize("span", ["all", "answer"])
@pytest.mark.parametrize("window", [1, 3])
def test_signals_are_as_wide_as_adapters_expect(kind, span, window):
    hidden = {EMBED: torch.randn(6, 4), 2: torch.randn(6, 4)}
    signal = edit_signal(kind, span, 2, hidden, 3, window)
    assert signal.states.shape == (3 if span == "answer" else 6, signal_width(kind, 4, window))
    assert bool(signal.states.any()) == (kind != "none")
    assert torch.equal(signal.last, hidden[2][3])


def test_a_window_ends_where_the_span_begins():
    hidden = {2: torch.randn(6, 4)}
    first = edit_signal("site", "answer", 2, hidden, 3, 2).states[0]
    assert torch.equal(first, torch.cat([hidden[2][3], torch.zeros(4)]))
    whole = edit_signal("site", "all", 2, hidden, 3, 2).states[3]
    assert torch.equal(whole, torch.cat([hidden[2][3], hidden[2][2]]))


@torch.no_grad()
def test_only_a_window_tells_which_words_of_an_answer_stand_together():
    words = torch.randn(4, 8)  # "red circle blue square" and "blue circle red square"
    torch.manual_seed(0)

    def moved(order, window):
        signal = edit_signal("embed", "all", 0, {EMBED: words[order], 0: words[order]}, 0, window)
        return adapter(h, pad_signals([signal]))

    h = torch.randn(1, 5, 8)
    for window in (1, 2):
        adapter = EditAdapter(8, 8, 2, "published", d_signal=8 * window)
        one, other = moved([0, 1, 2, 3], window), moved([2, 1, 0, 3], window)
        assert torch.allclose(one, other, atol=1e-6) == (window == 1)
