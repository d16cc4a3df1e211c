"""Texts that a language model wrote itself: it is trained to treat them as before.

Sampled text covers what a model knows without any data from outside ("data-free" distillation). The
model's last hidden states of the texts are kept, and the trained model is drawn to the
distributions that they give (Kullback-Leibler divergence), token by token.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

CHAT = "<|im_start|>user\n"
QUESTION = "nq question: "
STARTS = ("", CHAT, QUESTION, *(a + b for a in (CHAT, QUESTION) for b in ("what", "who", "where")))


@dataclass(frozen=True)
class ReplayTexts:
    """Texts and what the plain model makes of them.

    Attributes:
        ids: Token ids, all of one length, from BOS.
        hidden: The plain model's last hidden states, after the final norm.
    """

    ids: Int[Tensor, "text pos"]
    hidden: Float[Tensor, "text pos d_model"]


@torch.no_grad()
def sample_texts(
    model: Any, language_model: nn.Module, tokenizer: Any, count: int, length: int, seed: int
) -> ReplayTexts:
    """Sample texts from the plain model, from several starts in equal shares."""
    torch.manual_seed(seed)
    device, texts = next(language_model.parameters()).device, []
    for start in STARTS:
        first = torch.tensor([tokenizer(start).input_ids], device=device)
        first = first.repeat(-(-count // len(STARTS)), 1)
        texts.append(
            model.generate(
                input_ids=first,
                attention_mask=torch.ones_like(first),
                max_length=length,
                min_length=length,  # no end of sequence before
                suppress_tokens=[model.config.image_token_id],
                do_sample=True,
                top_k=0,
                top_p=0.95,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    ids = torch.cat(texts)[:count]
    decoder: Any = language_model
    hidden = [
        decoder(inputs_embeds=model.get_input_embeddings()(part)).last_hidden_state
        for part in ids.split(256)
    ]
    return ReplayTexts(ids.cpu(), torch.cat(hidden).to(torch.bfloat16))


def replay_loss(
    hidden: Float[Tensor, "row pos d_model"],
    replayed: Int[Tensor, "row pos 2"],
    texts: ReplayTexts,
    head: nn.Module,
) -> Float[Tensor, ""]:
    """Mean divergence (nats) of the trained model's distributions from the plain model's."""
    at = replayed[..., 0] >= 0
    if not at.any():
        return hidden.new_zeros(())
    text, pos = replayed[at].unbind(-1)
    with torch.no_grad():
        plain = head(texts.hidden[text, pos].to(hidden.dtype)).float().log_softmax(-1)
    ours = head(hidden[at]).float().log_softmax(-1)
    return nn.functional.kl_div(ours, plain, log_target=True, reduction="batchmean")
