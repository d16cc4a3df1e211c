"""Editors whose scores are known: they do nothing, or make a model say one thing."""

from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
from conftest import picture
from torch import nn

from attrib.data import EditRequest, EditSample
from attrib.errors import AttribError
from attrib.forward.hooks import on_output
from attrib.model.batch import IGNORE_INDEX
from editors.adapters import EditAdapter
from editors.adapters.edit_signal import EditSignal
from editors.adapters.router import HiddenEdit
from editors.adapters.sites import MemoryEntry, Site
from editors.base import WeightEdit

HEAD, EMBEDDING = "lm_head.weight", "model.language_model.embed_tokens.weight"
FIVE = ["rel", "t_gen", "v_gen", "t_loc", "m_loc"]
HARD_TYPES = ["same_image_same_kind", "same_image_other_kind", "same_question_other_image"]


def sample(i=0, target="red", **changes):
    """An edit with one input of each sort; the inputs are of different lengths."""
    own, other = picture(seed=i), picture(50, 50, seed=100 + i)
    prompt = f"What {'very ' * (i % 3)}is it?"
    fields = {
        "id": f"s{i}",
        "request": EditRequest(own, prompt, target),
        "text_generality": [EditRequest(own, f"Say what it is, number {i}?", target)],
        "visual_generality": [EditRequest(picture(70, 40, seed=200 + i), prompt, target)],
        "text_locality": [EditRequest(None, "nq question: who wrote Emma?", "she")],
        "visual_locality": [EditRequest(other, "Is it big?", "yes")],
        "hard_locality": [
            EditRequest(own, "How large is it?", "two"),
            EditRequest(own, "Where is it?", "top"),
            EditRequest(other, prompt, "blue"),
        ],
        "meta": {"kind": "color", "hard_types": HARD_TYPES, "row": i},
    }
    return EditSample(**fields | changes)


@dataclass
class Nothing:
    """Leaves the model as it is."""

    name = "nothing"

    def edit(self, _vlm, _request):
        return WeightEdit({})


@dataclass
class Says:
    """Makes a model say one thing again and again, whatever it is asked.

    The layers add nothing to the stream and the output embedding maps each character of the thing
    to the next one, so its characters have to be different.
    """

    words: str | None = None  # the target, if None
    name = "says"

    def edit(self, vlm, request):
        said = f" {self.words or request.target}."
        assert len(set(said)) == len(said), "a character has one next character"
        first = dict.fromkeys(("?", ":", said[-1]), said[0])  # the ends of prompts, and its own
        steps = first | dict(pairwise(said))
        weights = dict(vlm.model.named_parameters())
        head = torch.zeros_like(weights[HEAD])
        for before, after in steps.items():
            at, to = (
                vlm.tokenizer(c, add_special_tokens=False)["input_ids"] for c in (before, after)
            )
            head[to[0]] += nn.functional.normalize(weights[EMBEDDING][at[0]].detach(), dim=0)
        silent = ("language_model.layers", ("o_proj.weight", "down_proj.weight"))
        off = {
            n: torch.zeros_like(w)
            for n, w in weights.items()
            if silent[0] in n and n.endswith(silent[1])
        }
        return WeightEdit({HEAD: head, **off})


@dataclass
class Leaks:
    """Leaves one bit of one tensor, a hook or a mode behind."""

    what: str = "bit"
    name = "leaks"

    def edit(self, _vlm, _request):
        return Leaving(self.what)


@dataclass
class Leaving:
    """The edit of `Leaks`, which leaves it behind the first time that it is applied."""

    what: str
    num_bytes = 0
    has_leaked: bool = False

    @contextmanager
    def applied(self, vlm):
        yield
        if not self.has_leaked:
            leak(vlm, self.what)
        self.has_leaked = True


def leak(vlm, what):
    """Change one thing about a model; twice is not at all, for a bit or the mode."""
    if what == "bit":
        bits = dict(vlm.model.named_parameters())[HEAD].data.view(torch.int32)
        bits[3, 5] ^= 1
    elif what == "mode":
        vlm.layers[1].train(not vlm.layers[1].training)
    else:
        vlm.layers[2].register_forward_hook(lambda *_: None)


@dataclass
class Fails:
    """Cannot make edits of some requests; or breaks while an edit is applied."""

    prompts: tuple = ()
    inside: bool = False
    name = "fails"

    def edit(self, vlm, request):
        if request.prompt in self.prompts and not self.inside:
            raise AttribError("no edit of this request")
        return Failing(Says().edit(vlm, request), self.inside)


@dataclass
class Failing:
    """The edit of `Fails`: it holds, and then an error passes through its context."""

    edit: WeightEdit
    fails: bool
    num_bytes = 0

    @contextmanager
    def applied(self, vlm):
        with self.edit.applied(vlm):
            yield
            if self.fails:
                raise AttribError("an error inside the context")


class Puts(EditAdapter):
    """Puts the edit's last state wherever it writes."""

    def forward(self, h, edit):
        return edit.last[:, None].expand_as(h)


@dataclass
class Copies:
    """Writes, behind the last layer, the state of the token that follows in the answer it is given.

    It knows nothing: it reads what it is asked for, where an input contains it.
    """

    name = "copies"

    def edit(self, _vlm, _request):
        return Copying()


@dataclass
class Copying:
    """The edit of `Copies`."""

    num_bytes = 0

    @contextmanager
    def applied(self, vlm):
        def put(h):
            labels = vlm.active_batch.labels
            if labels is None:
                return None
            at = labels != IGNORE_INDEX
            written = h.clone()
            written[at] = dict(vlm.model.named_parameters())[HEAD].detach()[labels[at]]
            return written

        with on_output(vlm.layers[-1], put):
            yield


@dataclass
class Writes:
    """Writes, behind the last layer, the state whose most likely token is the target's first."""

    name = "writes"

    def edit(self, vlm, request):
        (token, *_) = vlm.tokenizer(request.target, add_special_tokens=False)["input_ids"]
        state = dict(vlm.model.named_parameters())[HEAD].detach()[token]
        site = Site(vlm.num_layers - 1, "text", Puts(vlm.d_model, 8, 2), write_last=True)
        return HiddenEdit(
            [site], [MemoryEntry(request, {site.key: EditSignal(state[None], state)}, {})]
        )
