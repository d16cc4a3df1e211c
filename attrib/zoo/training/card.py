"""The model card of an embedded backbone: what it is, how it was made, what it can do."""

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from attrib.data.scenes.vocabulary import EVERYDAY

_CARD = """---
license: mit
pipeline_tag: image-text-to-text
tags: [vision-language, interpretability, toy-world]
---
# {{ name }}

A small vision-language model of the {{ family }} family, trained from scratch on rendered scenes
(coloured shapes on a 3 x 3 grid) and on text-only facts of a made-up world. It exists so that
attribution and editing can be developed, tested and compared without a GPU or a download. It knows
nothing about photographs and must not be used for anything else.

- class `{{ architecture }}`: {{ layers }} decoder layers, width {{ width }}, {{ parameters }}
  parameters
- trained by `python -m attrib.zoo train {{ name }}` with seed {{ recipe.seed }} in
  {{ steps }} steps ({{ minutes }} minutes on {{ machine }})
- training scenes: split "backbone" of the generator; no scene of the splits train, validation or
  test was seen
- channel 0 of the residual stream is large and nearly constant, as single channels of large
  models are: it was planted (`attrib/zoo/training/outlier_channel.py`), and noise in standard
  deviations counts it

## Scores

{{ count }} held-out scenes (split "test"), greedy generation, normalised exact match,
end-of-sequence not counted. Half of the names are aliases, {{ nicknamed }} of the questions that
name a shape give it a nickname first, {{ optional }} of all questions are multiple choice, and
every prompt ends in "The answer is:". 95 % Wilson intervals.

| measurement | value | 95 % interval |
|---|---|---|
{%- for row in scores %}
| {{ row.name }} | {{ row.value }} | {{ row.interval }} |
{%- endfor %}

## Layers

{{ curve_count }} held-out questions; noise of one standard deviation at the output of a layer, KL
in nats at the last prompt token ("text" leaves out the last prompt token); "lens" is how often the
logit lens of a layer already names the final answer; "target decodable" is the held-out accuracy
of a ridge regression (1,000 edits to fit, 300 to test).

| layer | KL visual | KL text | lens | target decodable |
|---|---|---|---|---|
{%- for row in curves %}
| {{ loop.index0 }} | {{ row | join(" | ") }} |
{%- endfor %}
"""


def write_card(folder: Path, facts: dict[str, Any]) -> None:
    """Write `README.md` and `measured.json` into a backbone's folder."""
    environment = Environment(
        undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True
    )
    view = {
        **facts,
        "nicknamed": f"{EVERYDAY.nickname_rate:.0%}",
        "optional": f"{EVERYDAY.option_rate:.0%}",
        "scores": [_score_row(name, *entry) for name, entry in facts["scores"].items()],
        "curves": [
            [f"{v:.3f}" for v in row] for row in zip(*facts["curves"].values(), strict=True)
        ],
    }
    (folder / "README.md").write_text(environment.from_string(_CARD).render(view))
    (folder / "measured.json").write_text(json.dumps(facts, indent=1, allow_nan=False) + "\n")


def _score_row(name: str, value: float, count: int) -> dict[str, str]:
    low, high = wilson(value, count)
    return {"name": name, "value": f"{value:.1%}", "interval": f"{low:.1%} - {high:.1%}"}


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % Wilson interval of a share among `count` cases."""
    z = 1.959964
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * (share * (1 - share) / count + (z / count / 2) ** 2) ** 0.5
    return middle - half, middle + half
