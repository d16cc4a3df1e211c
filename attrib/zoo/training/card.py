"""The model card of an embedded backbone."""

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from attrib.data.scenes.vocabulary import EVERYDAY
from attrib.stats import wilson

_CARD = """---
license: mit
pipeline_tag: image-text-to-text
tags: [vision-language, interpretability, toy-world]
---
# {{ name }}

A small vision-language model of the {{ family }} family, trained from scratch on rendered scenes
(coloured shapes on a 3 x 3 grid) and on text-only facts of a made-up world. It is meant for
developing, testing and comparing attribution and editing methods without a GPU or a download. It
has never seen a photograph and is of no other use.

- class `{{ architecture }}`: {{ layers }} decoder layers, width {{ width }}, {{ parameters }}
  parameters
- trained by `python -m attrib.zoo train {{ name }}` with seed {{ recipe.seed }} in
  {{ steps }} steps ({{ minutes }} minutes on {{ machine }})
- training scenes: split "backbone" of the generator; no scene of the splits train, validation or
  test was seen
- channel 0 of the residual stream was made large and nearly constant, as single channels of large
  models are (`attrib/zoo/training/weight_surgery.py`); standard deviations of states include it

## Scores

{{ count }} held-out scenes (split "test"), greedy generation, normalised exact match,
end-of-sequence not counted. Half of the names are aliases, {{ nicknamed }} of the questions with a
shape introduce a nickname for it, {{ optional }} of all questions are multiple choice, and every
prompt ends with "The answer is:". 95 % Wilson intervals.

| measurement | value | 95 % interval |
|---|---|---|
{%- for row in scores %}
| {{ row.name }} | {{ row.value }} | {{ row.interval }} |
{%- endfor %}

## Layers

{{ curve_count }} held-out questions. KL: nats at the last prompt token under noise of one standard
deviation at the output of a layer ("text" leaves out the last prompt token). Lens: how often the
logit lens of a layer gives the final answer. Target decodable: held-out accuracy of a ridge
regression for an edit's target (1,000 edits to fit, 300 to test).

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


def _score_row(name: str, share: float, count: int) -> dict[str, str]:
    low, high = wilson(round(share * count), count)
    return {"name": name, "value": f"{share:.1%}", "interval": f"{low:.1%} - {high:.1%}"}
