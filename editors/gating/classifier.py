"""A small network that tells whether an input is one that an edit is about.

Both sides go through the same map, and what is compared is symmetric (products, absolute
differences, cosines): it does not matter which of the two is the edit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import gelu, normalize

from editors.gating.features import TEXT, VISUAL, GateReader, Inputs, padded

PATCHES = "patches"
WORST = 8  # the mean of the least alike 1/8 of the visual tokens is one of the features
BEYOND = 2.0  # more than any cosine: padding comes last in the order of cosines
NUM_PATCH_FEATURES = 4
NEVER = -50.0  # log-odds
RENAMED = {"asked": "text_embedding", "shown": "image_embedding"}  # old names, in saved gates


@dataclass(frozen=True, eq=False)
class EncodedInputs:
    """What is kept of inputs; all vectors have length 1.

    Attributes:
        text_embedding: The prompt's embedding, from states of the layers that the gate reads.
        image_embedding: The embedding of the whole image.
        patches: Each visual token, padded on the right.
        count: Number of visual tokens; 0 without an image.
    """

    text_embedding: Float[Tensor, "input width"]
    image_embedding: Float[Tensor, "input width"]
    patches: Float[Tensor, "input patch patch_width"]
    count: Int[Tensor, " input"]

    @classmethod
    def of(cls, states: Sequence[Mapping[str, Tensor]]) -> "Encoded":
        """Inputs side by side, each as `unpadded` gave it."""
        patches, seen = padded([one[PATCHES] for one in states])
        text, image = (
            torch.stack([one[new] if new in one else one[old] for one in states])
            for old, new in RENAMED.items()
        )
        return cls(text, image, patches, seen.sum(1))

    def unpadded(self) -> list[dict[str, Tensor]]:
        """One by one, without padding, each in tensors of its own."""
        return [
            {
                "text_embedding": text.clone(),
                "image_embedding": image.clone(),
                PATCHES: patches[:num].clone(),
            }
            for text, image, patches, num in zip(
                self.text_embedding,
                self.image_embedding,
                self.patches,
                self.count.tolist(),
                strict=True,
            )
        ]

    def __getitem__(self, index: Int[Tensor, " chosen"]) -> "Encoded":
        return EncodedInputs(*(getattr(self, f.name)[index] for f in fields(self)))

    def to(self, device: Any) -> "Encoded":
        """The same on a device."""
        return EncodedInputs(*(getattr(self, f.name).to(device) for f in fields(self)))

    def without_image(self, hidden: Bool[Tensor, " input"]) -> "Encoded":
        """The same inputs, of which some images are not to be looked at."""
        return replace(self, count=torch.where(hidden, 0, self.count))


class GateNet(nn.Module):
    """Encodes inputs one by one, and scores pairs of them.

    Args:
        text_width: Channels of a word's state.
        visual_width: Channels of a visual token's state.
        width: Of what is kept of the words, and of the picture as a whole.
        pools: In how many ways the words are averaged, each with learned weights.
        patch: Width of what is kept of each visual token.
        dropout: While training.
    """

    def __init__(
        self,
        text_width: int,
        visual_width: int,
        *,
        width: int = 64,
        pools: int = 4,
        patch: int = 32,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.sizes = {"width": width, "pools": pools, "patch": patch, "dropout": dropout}
        self.word = nn.Linear(text_width, width)
        self.attention = nn.Linear(width, pools, bias=False)
        self.text_embedding = nn.Linear(pools * width + text_width, width)
        self.image_embedding = nn.Linear(visual_width, width)
        self.patch = nn.Linear(visual_width, patch)
        self.dropout = nn.Dropout(dropout)
        features = 2 * (2 * width + 1) + NUM_PATCH_FEATURES + 1
        self.judge = nn.Sequential(
            nn.Linear(features, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, 1)
        )

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        for old, new in RENAMED.items():
            for name in [n for n in state_dict if n.startswith(f"{prefix}{old}.")]:
                state_dict[name.replace(old, new)] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @classmethod
    def over(cls, reader: GateReader, **sizes: Any) -> "GateNet":
        """A network for what a reader reads."""
        return cls(reader.width(TEXT), reader.width(VISUAL), **sizes)

    def encode(self, inputs: Inputs) -> EncodedInputs:
        """What is kept of each input."""
        text, visual = self.dropout(inputs.text), self.dropout(inputs.visual)
        words = gelu(self.word(text))
        weights = self.attention(words).masked_fill(~inputs.real[..., None], -torch.inf).softmax(1)
        pooled = torch.einsum("itp,itw->ipw", weights, words).flatten(1)
        last = text[torch.arange(len(text), device=text.device), inputs.real.sum(1) - 1]
        count = inputs.seen.sum(1)
        mean = visual.sum(1) / count.clamp(min=1)[:, None]
        return EncodedInputs(
            normalize(self.text_embedding(torch.cat([pooled, last], 1)), dim=-1),
            normalize(self.image_embedding(mean), dim=-1),
            normalize(self.patch(inputs.visual), dim=-1),
            count,
        )

    def compare(self, one: EncodedInputs, other: EncodedInputs) -> Float[Tensor, " pair"]:
        """Log-odds that the two inputs of each pair are covered by one edit.

        `NEVER` where one of them has an image and the other has none: an edit of what is seen
        leaves text alone, and the other way round.
        """
        seen = one.count > 0
        image = _compared(one.image_embedding, other.image_embedding)
        image = torch.cat([image, alike_patches(one, other)], 1)
        features = [
            _compared(one.text_embedding, other.text_embedding),
            torch.where(seen[:, None], image, 0),
            seen[:, None].float(),
        ]
        judged = self.judge(torch.cat(features, 1))[:, 0]
        return torch.where(seen == (other.count > 0), judged, NEVER)


def alike_patches(one: EncodedInputs, other: EncodedInputs) -> Float[Tensor, "pair feature"]:
    """Cosines of visual tokens at the same place: mean, smallest, spread, mean of the worst.

    Where two images have different numbers of visual tokens, places do not correspond: the cosine
    of the images as wholes stands for each.
    """
    width = min(one.patches.shape[1], other.patches.shape[1])
    cosine = (one.patches[:, :width] * other.patches[:, :width]).sum(-1)
    same = one.count == other.count
    whole = (one.image_embedding * other.image_embedding).sum(-1)
    cosine = torch.where(same[:, None], cosine, whole[:, None])
    return _summary(cosine, torch.where(same, one.count, width).clamp(min=1))


def _summary(
    cosine: Float[Tensor, "pair patch"], count: Int[Tensor, " pair"]
) -> Float[Tensor, "pair feature"]:
    place = torch.arange(cosine.shape[1], device=cosine.device)
    real = place < count[:, None]
    mean = torch.where(real, cosine, 0).sum(1) / count
    spread = torch.where(real, (cosine - mean[:, None]) ** 2, 0).sum(1) / count
    rising = torch.where(real, cosine, BEYOND).sort(1).values
    worst = (count // WORST).clamp(min=1)
    low = torch.where(place < worst[:, None], rising, 0).sum(1) / worst
    # The root of zero has no slope: identical images would stop the training.
    return torch.stack([mean, rising[:, 0], (spread + 1e-8).sqrt(), low], 1)


def _compared(
    a: Float[Tensor, "pair width"], b: Float[Tensor, "pair width"]
) -> Float[Tensor, "pair feature"]:
    """Symmetric features of unit vectors, scaled to a like size at any width."""
    width, product = a.shape[-1], a * b
    cosine = product.sum(-1, keepdim=True)
    return torch.cat([product * width**0.5, (a - b).abs() * width**0.25, cosine], 1)
