"""Prompt styles by name: how a benchmark's fields become the prompts that a model is given.

| style | question | caption | text alone | unrelated image |
|---|---|---|---|---|
| `visedit` | `{} The answer is:` | `{}` | `{}?` | `{} The answer is:` |
| `bare` | `{}` | `{}` | `{}` | `{}` |
| `short-answer` | `Question: {} Short answer:` | `{}` | `{}` | `Question: {} Short answer:` |
| `comprehendedit` | by the row's source | - | `{}` | by its question |

`visedit` is that of VisEdit and DualEdit, `bare` that of VLKEB, `short-answer` that of EasyEdit. A
space at a prompt's end, as MMKE-Bench keeps, is moved to the target by `vlm.encode`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from attrib.errors import AttribError

SUFFIX = " The answer is:"
SHORT = "Question: {} Short answer:"


@dataclass(frozen=True)
class PromptStyle:
    """Templates with `{}` for the words of a field.

    Attributes:
        question: Of questions about the edited image.
        caption: Of prompts that are no questions (E-IC).
        text: Of unrelated questions without an image.
        locality: Of unrelated questions about another image.
        by_source: Questions by the `source` of a row, in place of `question`.
    """

    question: str
    caption: str = "{}"
    text: str = "{}"
    locality: str = "{}"
    by_source: Mapping[str, str] = field(default_factory=dict)

    def asked(self, words: str, *, task: str = "vqa", source: str = "") -> str:
        """The prompt of a question, or of a caption."""
        known = self.by_source.get(source.lower(), self.question)
        return _filled(self.caption if task == "captions" else known, words)

    def unrelated(self, words: str, *, with_image: bool) -> str:
        """The prompt of an unrelated question."""
        return _filled(self.locality if with_image else self.text, words)


STYLES: dict[str, PromptStyle] = {
    "visedit": PromptStyle("{}" + SUFFIX, text="{}?", locality="{}" + SUFFIX),
    "bare": PromptStyle("{}"),
    "short-answer": PromptStyle(SHORT, locality=SHORT),
    "comprehendedit": PromptStyle(
        SHORT,
        locality=SHORT,
        by_source={
            "tallyqa": "Question: {} Answer with a number. Short answer:",
            "vsr": "Question: Is this description true or false? Description: {} Short answer:",
            "mathvista": "{} Short answer:",
        },
    ),
}


def style_named(name: str) -> PromptStyle:
    """The style of a name.

    Raises:
        AttribError: There is none.
    """
    if name not in STYLES:
        raise AttribError(f"no prompt style {name!r}; there are {', '.join(STYLES)}")
    return STYLES[name]


def _filled(template: str, words: str) -> str:
    """The template around words, unless they end with what it would append."""
    end = template.rpartition("{}")[2]
    return words if end.strip(" ?") and words.endswith(end) else template.replace("{}", words)
