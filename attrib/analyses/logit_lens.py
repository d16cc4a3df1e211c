"""The logit lens: what each layer's state would say if it were the last one.

A state is normed and unembedded as the last layer's output is (nostalgebraist, 2020). At the last
layer the result is the model's own prediction. Visual tokens have states as well: theirs often name
what their patch shows (Neo et al., 2024).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.errors import AttribError
from attrib.forward.hooks import read
from attrib.model.batch import Batch
from attrib.model.vlm import VLM

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TOP = 5
DRAWN = 12  # positions of a figure: the last ones of the text
LARGEST = 2**24  # logits at a time: 64 MiB in float32


@dataclass(frozen=True, eq=False)
class Lens:
    """The likeliest tokens of some states.

    Attributes:
        tokens: Their ids, the likeliest first.
        probabilities: Theirs.
    """

    tokens: Int[Tensor, "*states top"]
    probabilities: Float[Tensor, "*states top"]


@dataclass(frozen=True, eq=False)
class PromptLens(Lens):
    """The likeliest tokens of every layer's output at every position of prompts.

    Attributes:
        layers: The layers, in the order of the second axis.
        batch: The prompts.
        tokenizer: Turns tokens into text.
    """

    layers: Sequence[int]
    batch: Batch
    tokenizer: Any

    def plot(
        self, example: int = 0, positions: Sequence[int] | None = None, ax: "Axes | None" = None
    ) -> "Axes":
        """Draw a table of layers by positions: the likeliest tokens, coloured by probability.

        Args:
            example: Row of the batch.
            positions: Columns of the batch; by default the last `DRAWN` text tokens of the prompt.
            ax: Axes to draw on; by default new ones.

        Raises:
            AttribError: There is no such example or position.
        """
        from attrib.plots.lens import lens_table

        size, width = self.batch["last"].shape
        if not 0 <= example < size:
            raise AttribError(f"example {example}: the batch has examples 0 to {size - 1}")
        if positions is None:
            text = self.batch["text"] | self.batch["last"]
            positions = text[example].nonzero()[:, 0].tolist()[-DRAWN:]
        if not positions or any(not 0 <= at < width for at in positions):
            raise AttribError(f"positions {list(positions)}: the batch has 0 to {width - 1}")
        at = list(positions)
        ids = self.tokens[example, :, at, 0].tolist()
        texts = [self.tokenizer.batch_decode([[i] for i in row]) for row in ids]
        prompt = self.batch.inputs["input_ids"][example, at].tolist()
        words = self.tokenizer.batch_decode([[i] for i in prompt])
        values = self.probabilities[example, :, at, 0].float().cpu().numpy()
        return lens_table(texts, values, self.layers, words, ax)


@torch.no_grad()
def lens_of(vlm: VLM, states: Float[Tensor, "*states d_model"], top: int = TOP) -> Lens:
    """The `top` likeliest tokens of states of the residual stream, in float32.

    Raises:
        AttribError: `top` is not positive.
    """
    if top < 1:
        raise AttribError(f"top: expected 1 or more tokens, got {top}")
    flat = states.reshape(-1, states.shape[-1])
    ids, values = [], []
    rows = max(1, LARGEST // vlm.components.head.weight.shape[0])
    for some in flat.split(rows):
        logits = vlm.unembed_float32(some)
        best = logits.topk(min(top, logits.shape[-1]), -1)
        values.append((best.values - logits.logsumexp(-1, keepdim=True)).exp())
        ids.append(best.indices)
    shape = (*states.shape[:-1], -1)
    return Lens(torch.cat(ids).reshape(shape), torch.cat(values).reshape(shape))


@torch.no_grad()
def logit_lens(
    vlm: VLM, batch: Batch, layers: Iterable[int] | None = None, top: int = TOP
) -> PromptLens:
    """The likeliest tokens of every layer's output at every position, visual tokens as well.

    Args:
        vlm: The model.
        batch: Prompts with their images.
        layers: The layers, in the order of the result; all by default.
        top: Number of tokens.

    Returns:
        Tokens and probabilities, "batch layer pos top"; those of padding mean nothing. `plot()`
        draws them.
    """
    chosen = list(range(vlm.num_layers) if layers is None else layers)
    with read(vlm, chosen) as hidden:
        vlm.last_logits(batch)
    each = [lens_of(vlm, hidden[layer], top) for layer in chosen]
    device = batch["last"].device
    return PromptLens(
        torch.stack([lens.tokens.to(device) for lens in each], 1),
        torch.stack([lens.probabilities.to(device) for lens in each], 1),
        chosen,
        batch,
        vlm.tokenizer,
    )
