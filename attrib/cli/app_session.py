"""What the local app computes: one answer explored, one edit compared. Knows no web page."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from attrib.errors import AttribError
from attrib.vocabulary import Dtype

if TYPE_CHECKING:
    from attrib.explorer.page import Explorer
    from attrib.explorer.questions import Decision
    from attrib.model.vlm import VLM

MAX_NEW_TOKENS = 16
MOST_QUESTIONS = 50  # each is answered twice
SAMPLES = 64  # scenes for what an untrained editor has to see: demonstrations, states
HOLDS, NOT_TAKEN, LEAKS, UNCHANGED = "holds", "did not take", "leaks", "unchanged"


@dataclass(frozen=True)
class Explored:
    """One answer.

    Attributes:
        answer: The model's answer.
        probability: Product of the probabilities of its tokens.
        page: The explorer.
    """

    answer: str
    probability: float
    page: "Explorer"


@dataclass(frozen=True)
class Compared:
    """One question before and after an edit.

    Attributes:
        question: The question.
        role: "edited", "rephrased" or "other".
        before: The answer of the unedited model.
        after: That of the edited one.
        decision: Of the edit's gate; None if it applies to every input.
        verdict: `HOLDS` or `NOT_TAKEN` for the edited fact, else `UNCHANGED` or `LEAKS`.
    """

    question: str
    role: str
    before: str
    after: str
    decision: "Decision | None"
    verdict: str


def ready_editors(models: Sequence[str]) -> list[str]:
    """Editors that the package has trained for one of the models, and those without training."""
    from editors import EDITORS
    from editors.registry import pretrained

    known = dict.fromkeys(name for model in models for name in pretrained(model))
    return [*known, *(name for name, kind in EDITORS.items() if not kind.is_trained)]


class Session:
    """The models and editors of a running app; one computation at a time.

    An edit changes the model while it is applied: nothing else may use it meanwhile.

    Args:
        models: Names, ids or folders that can be chosen.
        editors: Folders of trained editors.
        folder: Where editors without training put their files.
        device: Device of the weights.
        dtype: Their type.
    """

    def __init__(
        self,
        models: Sequence[str],
        editors: Sequence[Path],
        folder: Path,
        *,
        device: str = "auto",
        dtype: Dtype = "auto",
    ):
        from attrib.pipeline.source import ModelLoader

        self.models, self.folder = list(models), folder
        self.folders = {str(path): path for path in editors}
        self._options = {"device": device, "dtype": dtype}
        self._load, self._lock = ModelLoader(), Lock()
        self._made: tuple[VLM, dict[str, Any]] | None = None

    @property
    def editors(self) -> list[str]:
        """What can make an edit: folders, editors of the package, editors without training."""
        return [*self.folders, *ready_editors(self.models)]

    def model(self, name: str) -> "VLM":
        """A model, loaded unless it is the last one.

        Raises:
            SetupError: It cannot be loaded.
        """
        from attrib.pipeline.options import ModelOptions

        if name not in self.models:
            raise AttribError(f"there is no model {name!r} here; there are {self.models}")
        self._made = self._made if self._made and self._made[0].name == name else None
        return self._load(ModelOptions.model_validate({"model": name, **self._options}))

    def explore(self, model: str, photo: Path | None, question: str) -> Explored:
        """A model's answer to a question, and the page that shows where it comes from.

        Raises:
            AttribError: The photo or the question cannot be used.
        """
        from attrib.explorer.explore import explore

        images = _opened(photo)
        _require(question, "a question")
        with self._lock:
            vlm = self.model(model)
            page = explore(vlm, images or None, question, max_new_tokens=MAX_NEW_TOKENS)
        (seen,) = page.sides
        probability = float(seen.key_p[seen.first_answer :, -1].prod())
        return Explored(seen.text, probability, page)

    def compare(
        self,
        model: str,
        editor: str,
        photo: Path | None,
        question: str,
        target: str,
        *,
        rephrased: str = "",
        others: Sequence[str] = (),
    ) -> list[Compared]:
        """Make one edit, and ask before and after it.

        Args:
            model: The model.
            editor: One of `editors`.
            photo: The photo of all questions.
            question: The question that is edited.
            target: Its new answer.
            rephrased: The question in other words; "" for none.
            others: Questions whose answers must not change.

        Raises:
            AttribError: A photo, text or editor cannot be used.
        """
        images = _opened(photo)
        _require(question, "a question")
        _require(target, "the new answer")
        asked = [("edited", question), ("rephrased", rephrased), *(("other", o) for o in others)]
        asked = [(role, text.strip()) for role, text in asked if text.strip()]
        if len(asked) > MOST_QUESTIONS:
            raise AttribError(f"{len(asked)} questions; give at most {MOST_QUESTIONS}")
        with self._lock:
            vlm = self.model(model)
            return compare(vlm, self._editor(vlm, editor), images, asked, target.strip())

    def _editor(self, vlm: "VLM", name: str) -> Any:
        """The editor for a model: made or loaded once."""
        if self._made is None or self._made[0] is not vlm:
            self._made = vlm, {}
        if name not in self.editors:
            known = ", ".join(self.editors)
            raise AttribError(f"there is no editor {name!r} here; there are {known}")
        made = self._made[1]
        if name not in made:
            made[name] = _make_editor(vlm, name, self.folders, self.folder)
        return made[name]


def compare(
    vlm: "VLM", editor: Any, images: list[Any], asked: Sequence[tuple[str, str]], target: str
) -> list[Compared]:
    """Edit the first question with its role, and ask all of them before and after."""
    from contextlib import nullcontext

    from attrib.cli.edit import longest_answer
    from attrib.data import EditRequest
    from attrib.explorer.questions import ask
    from editors.base import encode_requests

    request = EditRequest(images or None, asked[0][1], target)
    encode_requests(vlm, [request])
    for _, text in asked:  # all are refused before the edit is made
        _encode(vlm, text, images=images)
    edit = editor.edit(vlm, request)
    sides = ((vlm, nullcontext), (vlm, lambda: edit.applied(vlm)))
    longest = longest_answer(vlm, target, MAX_NEW_TOKENS)
    encode = partial(_encode, images=images)
    answers = ask(encode, [text for _, text in asked], sides, edit, longest)
    return [
        Compared(one.prompt, role, *one.answers, one.decision, verdict(role, *one.answers, target))
        for (role, _), one in zip(asked, answers, strict=True)
    ]


def verdict(role: str, before: str, after: str, target: str) -> str:
    """What an edit did to one answer, as the protocols `generate-prefix` and `generate` judge it.

    The edited fact has to begin with the target; another answer has to stay the same, but for
    case, spacing and marks at its ends.
    """
    from attrib.metrics import normalise
    from editors.evaluation.protocols import begins_with_target

    if role != "other":
        return HOLDS if begins_with_target(after, target) else NOT_TAKEN
    return UNCHANGED if normalise(before) == normalise(after) else LEAKS


def _make_editor(vlm: "VLM", name: str, folders: dict[str, Path], below: Path) -> Any:
    from attrib.data import load
    from editors import EDITORS, load_editor

    if name in folders:
        return load_editor(folders[name], vlm)
    if EDITORS[name].is_trained:
        return load_editor(name, vlm)
    samples = load("scenes-vqa", split="train", limit=SAMPLES)
    out = below / f"{name}-{len(list(below.iterdir()))}"  # one per model
    return EDITORS[name].train(vlm, samples, out=out)


def _encode(vlm: "VLM", text: str, *, images: list[Any]) -> Any:
    return vlm.encode([images or None], [text])


def _opened(photo: Path | None) -> list[Any]:
    from attrib.data import open_photo

    return [] if photo is None else [open_photo(photo)]


def _require(text: str, what: str) -> None:
    if not text.strip():
        raise AttribError(f"type {what}")
