import json

from attrib.zoo.__main__ import write_card

FACTS = {
    "name": "tiny-test",
    "family": "LLaVA-1.5",
    "architecture": "LlavaForConditionalGeneration",
    "layers": 2,
    "width": 8,
    "parameters": 100,
    "recipe": {"seed": 3},
    "steps": 10,
    "minutes": 1,
    "machine": "1 core",
    "count": 200,
    "scores": {"vqa": (0.9, 200), "facts": (1.0, 320)},
    "curve_count": 20,
    "curves": {
        "kl visual": [0.5, 0.25],
        "kl text": [0.125, 0.0],
        "lens": [0.1, 1.0],
        "target": [1, 1],
    },
}


def test_the_card_holds_every_score_with_its_interval_and_every_layer(tmp_path):
    write_card(tmp_path, FACTS)
    card = (tmp_path / "README.md").read_text()
    assert "| vqa | 90.0% | 85.1% - 93.4% |" in card
    assert "| 0 | 0.500 | 0.125 | 0.100 | 1.000 |" in card
    assert "| 1 | 0.250 | 0.000 | 1.000 | 1.000 |" in card
    assert json.loads((tmp_path / "measured.json").read_text())["scores"]["facts"] == [1.0, 320]
