"""Low-rank additions that are projected off text: A becomes A P, fixed in training.

With second moments C_s of a layer's inputs on scenes and C_t on texts, P = C_s (C_s + lam C_t)^-1
is the least squares solution that keeps an addition B A as it is on scenes and makes it zero on
texts: it minimises E_s |B A x - B A P x|^2 + lam E_t |B A P x|^2 (regression of two tasks, as in
RegMean, Jin et al., 2023).
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Bool, Float
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.utils import parametrize

from attrib.model.wrapped import on_call

_PARAMETRIZED = ".parametrizations.weight.original"
Moments = dict[str, Float[Tensor, "d_in d_in"]]


class Projected(nn.Module):
    """The parametrization A P of the matrix A of an addition."""

    def __init__(self, projection: Float[Tensor, "d_in d_in"]):
        super().__init__()
        self.register_buffer("projection", projection, persistent=False)

    def forward(self, down: Float[Tensor, "rank d_in"]) -> Float[Tensor, "rank d_in"]:
        """A P, in the precision of A."""
        projection: Any = self.projection
        return down @ projection.to(down.dtype)


def input_moments(
    model: nn.Module, at: Bool[Tensor, "row pos"], run: Callable[[], object]
) -> Moments:
    """Second moments of the inputs of all layers with additions, at some positions.

    Args:
        model: The model with additions.
        at: The positions of a batch.
        run: Runs the model on that batch.

    Returns:
        The mean of x x^T per layer, by its name.
    """
    found: Moments = {}
    last: list[Any] = [None, torch.empty(0)]  # q, k and v have one input, gate and up another

    def keep(name: str, states: Tensor) -> None:
        if states is not last[0]:
            chosen = states.detach()[at].double()
            last[:] = states, (chosen.T @ chosen / len(chosen)).float()
        found[name] = last[1]

    with ExitStack() as hooks, torch.no_grad():
        modules: dict[str, nn.Module] = dict(model.named_modules())
        for name, module in modules.items():
            if isinstance(module, LoraLayer):
                hooks.enter_context(on_call(module, lambda args, _, n=name: keep(n, args[0])))
        run()
    return found


def projection_off_text(
    scene: Float[Tensor, "d_in d_in"], text: Float[Tensor, "d_in d_in"], lam: float
) -> Float[Tensor, "d_in d_in"]:
    """P = C_s (C_s + lam C_t)^-1, in float64."""
    scene, text = scene.double(), text.double()
    total = scene + lam * text
    ridge = 1e-6 * total.diagonal().mean()
    total.diagonal().add_(ridge)
    return torch.linalg.solve(total, scene).T  # both are symmetric


def project_additions(model: nn.Module, scene: Moments, text: Moments, lam: float) -> None:
    """Give each addition of a model the parametrization A P; P is not trained."""
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            chosen: Any = layer.lora_A["default"]
            projection = projection_off_text(scene[name], text[name], lam)
            projected = Projected(projection.to(chosen.weight))
            parametrize.register_parametrization(chosen, "weight", projected)


def plain_name(name: str) -> str:
    """The name that a parametrized weight has without its parametrization."""
    return name.replace(_PARAMETRIZED, ".weight")


def effective(model: nn.Module, name: str, weight: Tensor) -> Tensor:
    """The weight that is used: A P for a projected A, the weight itself elsewhere."""
    if not name.endswith(_PARAMETRIZED):
        return weight
    return model.get_submodule(name.removesuffix(_PARAMETRIZED)).weight  # pyright: ignore[reportReturnType]
