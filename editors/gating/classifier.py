"""A small network that classifies pairs of input and edit: does the edit apply to the input?

Both sides share one encoder, and the features of a pair are symmetric (products, absolute
differences, cosines), so that input and edit can be swapped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import gelu, normalize

from editors.adapters.edit_signal import pad_states
from editors.gating.features import TEXT, VISUAL, GateInputs, GateReader

PATCHES = "patches"
WORST = 8  # the mean of the least similar 1/8 of the visual tokens is one of the features
BEYOND = 2.0  # above any cosine: padding sorts last
NUM_PATCH_FEATURES = 4
PATCH_LOW, PATCH_HIGH = (-1.0, -1.0, 0.0, -1.0), (1.0, 1.0, 1.0, 1.0)  # the range of each
NEVER = -50.0  # log-odds
RENAMED = {"asked": "text_embedding", "shown": "image_embedding"}  # old names, in saved gates


@dataclass(frozen=True, eq=False)
class EncodedInputs:
    """Embeddings of inputs; all vectors have length 1.

    Attributes:
        text_embedding: The prompt's embedding, from states of the layers that the gate reads.
        image_embedding: The embedding of the whole image.
        patches: The embedding of each visual token, padded on the right.
        count: Number of visual tokens; 0 without an image.
    """

    text_embedding: Float[Tensor, "input width"]
    image_embedding: Float[Tensor, "input width"]
    patches: Float[Tensor, "input patch patch_width"]
    count: Int[Tensor, " input"]

    @classmethod
    def of(cls, states: Sequence[Mapping[str, Tensor]]) -> "EncodedInputs":
        """Batch inputs that `unpadded` returned."""
        patches, seen = pad_states([one[PATCHES].float() for one in states])
        text, image = (
            torch.stack([one[new] if new in one else one[old] for one in states])
            for old, new in RENAMED.items()
        )
        return cls(text, image, patches, seen.sum(1))

    def unpadded(self) -> list[dict[str, Tensor]]:
        """Return each input's tensors without padding, cloned."""
        embeddings = {name: getattr(self, name) for name in RENAMED.values()}
        return [
            {name: value[i].clone() for name, value in embeddings.items()}
            | {PATCHES: self.patches[i, :num].clone()}
            for i, num in enumerate(self.count.tolist())
        ]

    def __getitem__(self, index: Int[Tensor, " chosen"]) -> "EncodedInputs":
        return EncodedInputs(*(getattr(self, f.name)[index] for f in fields(self)))

    def to(self, device: Any) -> "EncodedInputs":
        """Move the tensors to a device."""
        return EncodedInputs(*(getattr(self, f.name).to(device) for f in fields(self)))

    def without_image(self, hidden: Bool[Tensor, " input"]) -> "EncodedInputs":
        """Return the same inputs, the images of those that are `hidden` removed."""
        return replace(self, count=torch.where(hidden, 0, self.count))


class GateNet(nn.Module):
    """Encodes inputs one by one and scores pairs of them.

    Args:
        text_width: Channels of a text token's features.
        visual_width: Channels of a visual token's features.
        width: Width of the text and image embeddings.
        pools: Number of learned weighted averages over the text tokens.
        patch: Width of a visual token's embedding.
        dropout: Dropout rate in training.
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

    @classmethod
    def for_reader(cls, reader: GateReader, **sizes: Any) -> "GateNet":
        """Build a network for the features of a reader."""
        return cls(reader.width(TEXT), reader.width(VISUAL), **sizes)

    def _load_from_state_dict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any
    ) -> None:
        for old, new in RENAMED.items():
            for name in [n for n in state_dict if n.startswith(f"{prefix}{old}.")]:
                state_dict[name.replace(old, new)] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def encode(self, inputs: GateInputs) -> EncodedInputs:
        """Embed each input."""
        text, visual, mask = (
            self.dropout(inputs.text),
            self.dropout(inputs.visual),
            inputs.text_mask,
        )
        words = gelu(self.word(text))
        weights = self.attention(words).masked_fill(~mask[..., None], -torch.inf).softmax(1)
        pooled = torch.einsum("itp,itw->ipw", weights, words).flatten(1)
        last = text[torch.arange(len(text), device=text.device), mask.sum(1) - 1]
        count = inputs.visual_mask.sum(1)
        mean = visual.sum(1) / count.clamp(min=1)[:, None]
        return EncodedInputs(
            normalize(self.text_embedding(torch.cat([pooled, last], 1)), dim=-1),
            normalize(self.image_embedding(mean), dim=-1),
            normalize(self.patch(inputs.visual), dim=-1),
            count,
        )

    def compare(self, one: EncodedInputs, other: EncodedInputs) -> Float[Tensor, " pair"]:
        """Return the log-odds that one edit covers both inputs of each pair.

        They are `NEVER` where only one of them has an image: an edit about an image does not apply
        to text alone, nor the reverse.
        """
        seen = one.count > 0
        image = _pair_features(one.image_embedding, other.image_embedding)
        image = torch.cat([image, patch_features(one, other)], 1)
        features = [
            _pair_features(one.text_embedding, other.text_embedding),
            torch.where(seen[:, None], image, 0),
            seen[:, None].float(),
        ]
        log_odds = self.judge(torch.cat(features, 1))[:, 0]
        return torch.where(seen == (other.count > 0), log_odds, NEVER)


def patch_features(one: EncodedInputs, other: EncodedInputs) -> Float[Tensor, "pair feature"]:
    """Cosines of visual tokens at the same place: mean, minimum, spread, mean of the lowest 1/8.

    Where two images have different numbers of visual tokens, places do not correspond, and the
    cosine of the image embeddings stands for each.
    """
    width = min(one.patches.shape[1], other.patches.shape[1])
    cosine = (one.patches[:, :width] * other.patches[:, :width]).sum(-1)
    same = one.count == other.count
    whole = (one.image_embedding * other.image_embedding).sum(-1)
    cosine = torch.where(same[:, None], cosine, whole[:, None])
    count = torch.where(same, one.count, width).clamp(min=1)
    place = torch.arange(width, device=cosine.device)
    real = place < count[:, None]
    mean = torch.where(real, cosine, 0).sum(1) / count
    variance = torch.where(real, (cosine - mean[:, None]) ** 2, 0).sum(1) / count
    rising = torch.where(real, cosine, BEYOND).sort(1).values
    worst = (count // WORST).clamp(min=1)
    low = torch.where(place < worst[:, None], rising, 0).sum(1) / worst
    # The square root has no gradient at zero, where two images are identical.
    return torch.stack([mean, rising[:, 0], (variance + 1e-8).sqrt(), low], 1)


def _pair_features(
    a: Float[Tensor, "pair width"], b: Float[Tensor, "pair width"]
) -> Float[Tensor, "pair feature"]:
    """Symmetric features of unit vectors, scaled to similar sizes at any width."""
    width, product = a.shape[-1], a * b
    cosine = product.sum(-1, keepdim=True)
    return torch.cat([product * width**0.5, (a - b).abs() * width**0.25, cosine], 1)
