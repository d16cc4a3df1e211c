"""Gradient steps on a request: how many, how large, on what, and what the parameters become."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from attrib.errors import AttribError
from attrib.model.vlm import VLM
from editors.weights.mlp import Which
from editors.weights.partial_forward import target_loss, with_weights
from editors.weights.vision import Part

Logits = Callable[[], Float[Tensor, "asked d_vocab"]]


@dataclass(frozen=True)
class Tuning:
    """How a request is fine-tuned on.

    Attributes:
        steps: At most so many steps of AdamW.
        learning_rate: Of AdamW.
        weight_decay: Of AdamW.
        stop_below: No step is taken once the loss, in nats per token, is below it.
        part: What FT-V trains: the "connector" (the Q-Former where there is one, else the
            projector), the "projection" in any case, or the whole "vision_tower", as the papers say
            but no program does.
        matrices: What FT-L trains of a feed-forward network: "down", its output matrix,
            "up_down" (VLKEB), or "all".
        seed: Of nothing, because nothing is random here; every editor takes one.
    """

    steps: int = 25
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    stop_below: float = 1e-2
    part: Part = "connector"
    matrices: Which = "down"
    seed: int = 0


@torch.enable_grad()
def fitted(
    vlm: VLM, tuning: Tuning, before: Mapping[str, Tensor], logits: Logits, labels: Tensor
) -> dict[str, Tensor]:
    """The parameters after the steps, of those that the request's answer depends on.

    Steps are taken in float32 or better, whatever the model computes in: in half precision most
    would be rounded away.
    """
    exact = {
        name: value.detach().to(torch.promote_types(value.dtype, torch.float32)).clone()
        for name, value in before.items()
    }
    trained = [value.requires_grad_() for value in exact.values()]
    optimizer = torch.optim.AdamW(
        trained, lr=tuning.learning_rate, weight_decay=tuning.weight_decay
    )

    def rounded() -> dict[str, Tensor]:
        return {name: value.to(before[name].dtype) for name, value in exact.items()}

    for _ in range(tuning.steps):
        loss = target_loss(with_weights(vlm, rounded(), logits), labels)
        if not bool(loss.isfinite()):
            raise AttribError(f"the loss is {loss.item()}; a smaller learning_rate would help")
        if loss.item() < tuning.stop_below:
            break
        # Not `backward`: a model whose own parameters ask for gradients must not be given any.
        grads = torch.autograd.grad(loss, trained, allow_unused=True)
        for value, grad in zip(trained, grads, strict=True):
            value.grad = grad
        optimizer.step()
    moved = {name for name, value in exact.items() if value.grad is not None}
    return {name: value.detach() for name, value in rounded().items() if name in moved}
