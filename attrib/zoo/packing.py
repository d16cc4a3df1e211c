"""Sequence packing: many questions about one image in one training sequence, and their loss.

A row holds the image once, followed by its segments (question and answer, caption, fact). A
segment attends to the image and to itself, and its positions are those that it would have alone, so
training on a packed row equals training on its segments one by one, at a fraction of the cost.
Text-only segments do not attend to the image.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from attrib.zoo import Backbone, output_embedding, visual_tokens

ATTENTION = "attrib_packed"
_MASKED = -1e4  # far below any score, and finite in bf16


@dataclass(frozen=True)
class Segment:
    """One text with its answer.

    Attributes:
        ids: token ids of prompt and answer, without those of the image.
        num_prompt: index of the first answer token.
        kind: the kind of question, "caption" or "fact".
        sees_image: whether it attends to the image.
        weight: of each answer token in the loss.
        replayed: number of the text that this is, where a model's distributions are to stay what
            they were; -1 elsewhere.
    """

    ids: list[int]
    num_prompt: int
    kind: str
    sees_image: bool = True
    weight: float = 1.0
    replayed: int = -1


@dataclass(frozen=True)
class Packed:
    """Packed rows, inputs of the language model; every row starts with the image's prefix.

    Attributes:
        ids: token ids.
        positions: position ids.
        owner: 0 at the prefix, k at segment k - 1, -1 at padding.
        sees: True where the segment attends to the image.
        kinds: of the segments of each row.
        labels: the next token where it is an answer token, else -100.
        weights: of the labels in the loss.
        segments: index in the row of the segment that predicts here, else -1.
        replayed: number of the replayed text and position in it, or -1 and -1.
    """

    ids: Int[Tensor, "row pos"]
    positions: Int[Tensor, "row pos"]
    owner: Int[Tensor, "row pos"]
    sees: Bool[Tensor, "row pos"]
    kinds: list[list[str]]
    labels: Int[Tensor, "row pos"]
    weights: Float[Tensor, "row pos"]
    segments: Int[Tensor, "row pos"]
    replayed: Int[Tensor, "row pos 2"]

    def mask(self, device: str = "cpu") -> Bool[Tensor, "row 1 pos pos"]:
        """True where a query may attend to a key; computed on `device`, since it is large."""
        owner, sees = self.owner.to(device), self.sees.to(device)
        same = owner[:, :, None] == owner[:, None, :]
        image = sees[:, :, None] & (owner == 0)[:, None, :]
        causal = torch.ones(owner.shape[1], owner.shape[1], dtype=torch.bool, device=device).tril()
        return ((same | image) & causal)[:, None]


def pack(prefix: list[int], rows: list[list[Segment]], length: int, pad: int) -> Packed:
    """Lay out rows of segments after the prefix.

    Args:
        prefix: the token ids of the image and of what precedes it.
        rows: the segments of each row; those that do not fit into `length` are left out.
        length: positions per row.
        pad: the padding token.
    """
    shape = (len(rows), length)
    ids = torch.full(shape, pad)
    owner = torch.full(shape, -1)
    sees = torch.zeros(shape, dtype=torch.bool)
    positions = torch.zeros(shape, dtype=torch.long)
    labels, segments = torch.full(shape, -100), torch.full(shape, -1)
    weights, replayed = torch.zeros(shape), torch.full((*shape, 2), -1)
    kinds: list[list[str]] = []
    start = len(prefix)
    ids[:, :start] = torch.tensor(prefix)
    owner[:, :start] = 0
    positions[:, :start] = torch.arange(start)
    for r, row in enumerate(rows):
        kinds.append([])
        at = start
        for segment in row:
            end = at + len(segment.ids)
            if end > length:
                continue
            here, first = slice(at, end), start if segment.sees_image else 0
            ids[r, here] = torch.tensor(segment.ids)
            positions[r, here] = torch.arange(first, first + len(segment.ids))
            kinds[-1].append(segment.kind)
            owner[r, here], sees[r, here] = len(kinds[-1]), segment.sees_image
            predicts = slice(at + segment.num_prompt - 1, end - 1)
            labels[r, predicts] = torch.tensor(segment.ids[segment.num_prompt :])
            weights[r, predicts] = segment.weight
            segments[r, predicts] = len(kinds[-1]) - 1
            if segment.replayed >= 0:
                replayed[r, here, 0] = segment.replayed
                replayed[r, here, 1] = torch.arange(end - at)
            at = end
    return Packed(ids, positions, owner, sees, kinds, labels, weights, segments, replayed)


def packed_loss(
    model: Backbone,
    decoder: Callable,
    batch: Packed,
    pixels: Tensor,
    device: str,
    precision: torch.dtype = torch.bfloat16,
) -> tuple[Tensor, dict[str, Bool[Tensor, " segment"]]]:
    """Weighted cross-entropy of a packed batch, and which answers are right.

    Args:
        model: the backbone.
        decoder: its language model, or a compiled form of it.
        batch: the rows.
        pixels: the image of each row.
        device: where the model is.
        precision: of the products of matrices.

    Returns:
        The loss, and per kind whether all tokens of each answer, end-of-sequence not counted, are
        right.
    """
    ids, labels = batch.ids.to(device), batch.labels.to(device)
    with torch.autocast(device, precision, enabled=precision != torch.float32):
        images = visual_tokens(model, pixels.to(device))
        words = model.get_input_embeddings()(ids)
        at_image = (ids == model.config.image_token_id)[..., None]
        hidden = decoder(
            inputs_embeds=words.masked_scatter(at_image, images.to(words.dtype)),
            attention_mask=batch.mask(device),
            position_ids=batch.positions.to(device),
            use_cache=False,
        ).last_hidden_state
        at = labels != -100
        logits = output_embedding(model)(hidden[at])
    losses = nn.functional.cross_entropy(logits.float(), labels[at], reduction="none")
    weights = batch.weights.to(device)[at]
    loss = (losses * weights).sum() / weights.sum()
    eos = model.config.get_text_config().eos_token_id
    return loss, _right_answers(batch, (logits.argmax(-1) == labels[at]) | (labels[at] == eos))


def _right_answers(
    batch: Packed, hits: Bool[Tensor, " label"]
) -> dict[str, Bool[Tensor, " segment"]]:
    row, pos = (batch.labels != -100).nonzero(as_tuple=True)
    wrong = torch.zeros(len(batch.kinds), max(map(len, batch.kinds)))
    wrong.index_put_((row, batch.segments[row, pos]), (~hits.cpu()).float(), accumulate=True)
    found: dict[str, list[bool]] = {}
    for kinds, counts in zip(batch.kinds, wrong.tolist(), strict=True):
        for kind, count in zip(kinds, counts, strict=False):
            found.setdefault(kind, []).append(count == 0)
    return {kind: torch.tensor(right) for kind, right in found.items()}


def register_attention() -> str:
    """Register the attention of packed rows with transformers; returns its name for a config.

    A plain bf16 softmax: for short rows under an arbitrary mask it takes half the time of the
    backward pass of the fused CPU kernel.
    """
    AttentionInterface.register(ATTENTION, _packed_attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    return ATTENTION


def _packed_attention(
    module: nn.Module,  # noqa: ARG001 - the signature is transformers'
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    batch, heads, length, width = query.shape
    scale = width**-0.5 if scaling is None else scaling
    bias = torch.where(attention_mask, 0.0, _MASKED).to(query.dtype)
    bias = bias.expand(batch, heads, length, key.shape[2]).reshape(-1, length, key.shape[2])
    scores = torch.baddbmm(bias, (query * scale).flatten(0, 1), key.flatten(0, 1).transpose(1, 2))
    mixed = scores.softmax(-1) @ value.flatten(0, 1)
    return mixed.view(batch, heads, length, width).transpose(1, 2), None
