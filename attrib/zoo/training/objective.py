"""What training minimises, and by which optimizers."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from attrib.zoo.models import Backbone, language_model, output_embedding, visual_tokens
from attrib.zoo.training.curriculum import CurriculumSampler
from attrib.zoo.training.packing import Packed


def build_sampler(model: Backbone, processor) -> tuple[CurriculumSampler, list[int]]:
    """The teacher for a model's tokenizer, and the token ids of the picture's prefix."""
    tokenizer = processor.tokenizer
    image, bos = model.config.image_token_id, tokenizer.bos_token_id
    encode = lambda text: tokenizer(text, add_special_tokens=False).input_ids  # noqa: E731
    if hasattr(processor, "num_query_tokens"):  # BLIP-2 puts the picture before BOS
        prefix, before = [image] * processor.num_query_tokens, [bos]
    else:
        prefix, before = [bos] + [image] * model.config.image_seq_length, encode("\n")
    return CurriculumSampler(encode, before, [bos], tokenizer.eos_token_id), prefix


def lesson_loss(
    model: Backbone, decoder: Callable, batch: Packed, pixels: Tensor, device: str
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted cross-entropy of a packed batch; per kind, whether each answer was right.

    An answer is right where all its tokens are, end-of-sequence not counted.
    """
    ids, labels = batch.ids.to(device), batch.labels.to(device)
    with torch.autocast(device, torch.bfloat16):
        seen = visual_tokens(model, pixels.to(device))
        words = model.get_input_embeddings()(ids)
        picture = (ids == model.config.image_token_id)[..., None]
        inputs = words.masked_scatter(picture, seen.to(words.dtype))
        hidden = decoder(
            inputs_embeds=inputs,
            attention_mask=batch.mask.to(device),
            position_ids=batch.positions.to(device),
            use_cache=False,
        ).last_hidden_state
        at = labels != -100
        logits = output_embedding(model)(hidden[at])
    losses = nn.functional.cross_entropy(logits.float(), labels[at], reduction="none")
    weights = batch.weights.to(device)[at]
    loss = (losses * weights).sum() / weights.sum()
    end = model.config.get_text_config().eos_token_id
    return loss, _right_answers(batch, (logits.argmax(-1) == labels[at]) | (labels[at] == end))


def _right_answers(batch: Packed, hits: Tensor) -> dict[str, Tensor]:
    at = batch.labels != -100
    row = torch.arange(len(at))[:, None].expand_as(at)[at]
    most = max(map(len, batch.kinds))
    key = row * most + batch.segments[at]
    wrong = torch.zeros(len(at) * most, dtype=torch.long).index_add_(0, key, (~hits.cpu()).long())
    found: dict[str, list[bool]] = {}
    for r, kinds in enumerate(batch.kinds):
        for s, kind in enumerate(kinds):
            found.setdefault(kind, []).append(bool(wrong[r * most + s] == 0))
    return {kind: torch.tensor(hits) for kind, hits in found.items()}


def make_optimizers(model: Backbone, peak: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the decoder layers, AdamW for the rest (eyes at a third)."""
    matrices, decoder, eyes = [], [], []
    mouth = {id(p) for p in model.get_input_embeddings().parameters()}
    mouth |= {id(p) for p in output_embedding(model).parameters()}
    mouth |= {id(p) for p in language_model(model).parameters()}
    for name, p in model.named_parameters():
        if id(p) not in mouth:
            eyes.append(p)
        elif p.ndim == 2 and ".layers." in name:
            matrices.append(p)
        else:
            decoder.append(p)
    adam = torch.optim.AdamW(
        [{"params": decoder, "peak": peak}, {"params": eyes, "peak": peak / 4}],
        betas=(0.9, 0.95),
        weight_decay=0.02,
    )
    muon = torch.optim.Muon(
        [{"params": matrices, "peak": peak}],
        weight_decay=0.02,
        adjust_lr_fn="match_rms_adamw",
    )
    return [adam, muon]
