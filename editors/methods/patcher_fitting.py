"""How Transformer-Patcher's neurons are made for one request: where they start, what they learn."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attrib.errors import AttribError
from attrib.forward.hooks import on_input
from attrib.model.batch import IGNORE_INDEX, Batch
from attrib.model.vlm import VLM
from editors.weights.mlp import FeedForward
from editors.weights.neurons import Neurons, fires_at, patched
from editors.weights.partial_forward import Tail, labels_of, tail_of, target_loss

Variant = Literal["original", "liveedit"]
PATIENCE = 3  # looks without progress before the learning rate is halved


@dataclass(frozen=True)
class PatchSettings:
    """How neurons are made.

    Attributes:
        variant: "original", or "liveedit": one neuron from zero, a few steps, hardly any weight on
            what it does elsewhere. Zero times zero has no gradient: in a gated network (Llama) such
            a neuron never comes to life. Of that program's two defects this is kept; that it loses
            sight of the request after one step is not.
        max_neurons: At most so many; there is one per wrong answer token.
        steps: At most so many steps of Adam.
        learning_rate: Of Adam, halved where the loss does not fall any more.
        weight_decay: Of Adam.
        value_scale: Of what the neurons write at first, in standard normal numbers.
        activation_weight: Of the loss that lets a neuron fire at its token.
        memory_weight: Of the loss that keeps it silent elsewhere (published: 5 or 10).
        margin: By how much it is to be silent.
        top_activation: That loss is about the so many worst neurons.
        top_memory: And this one about the so many worst pairs of a neuron and a remembered state.
        clip: Largest norm of the gradient.
        look_every: Steps between looks at whether the edit is done.
        num_memories: States of training inputs that are remembered.
        seed: Of what neurons write at first, and of which states are remembered.
    """

    variant: Variant = "original"
    max_neurons: int = 5
    steps: int = 2000
    learning_rate: float = 1e-2
    weight_decay: float = 0.01
    value_scale: float = 10.0
    activation_weight: float = 1.0
    memory_weight: float = 10.0
    margin: float = 3.0
    top_activation: int = 5
    top_memory: int = 1000
    clip: float = 5.0
    look_every: int = 25
    num_memories: int = 40_000
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Request:
    """One request at the layer that is patched.

    Attributes:
        run: Runs the layers from there on.
        labels: The answer tokens.
        x: What the feed-forward network sees where they are asked for.
        wrong: Which of them the model gets wrong.
    """

    run: Tail
    labels: Int[Tensor, " asked"]
    x: Float[Tensor, "asked d_model"]
    wrong: Int[Tensor, " wrong"]


@torch.no_grad()
def request_of(vlm: VLM, network: FeedForward, layer: int, batch: Batch) -> Request:
    """A batch of one request, run up to the layer."""
    run, labels = tail_of(vlm, batch, layer), labels_of(batch)
    x: list[Tensor] = []
    with on_input(network.up.module, lambda h, _args, _kwargs: x.append(h)):
        right = vlm.unembed(run()).argmax(-1) == labels
    assert batch.labels is not None
    return Request(run, labels, at_answers(x[0], batch.labels).float(), (~right).nonzero()[:, 0])


def at_answers(
    x: Float[Tensor, "*rest d_model"], labels: Int[Tensor, "batch pos"]
) -> Float[Tensor, "asked d_model"]:
    """The inputs of a feed-forward network where a label is asked for."""
    return x.reshape(*labels.shape, x.shape[-1])[labels != IGNORE_INDEX]


class TrainablePatch(nn.Module):
    """Neurons that are being trained; `at` are the states they are made for, one each.

    In the original recipe a key is the state over its squared length, so that the neuron hears 1
    there (in a gated network: what its activation function makes 1 of), and its value is random.
    """

    def __init__(
        self, network: FeedForward, at: Float[Tensor, "neuron d_model"], settings: PatchSettings
    ):
        super().__init__()
        num, d_model = at.shape
        branches = 1 if network.gate is None else 2
        keys, values = at.new_zeros(branches, num, d_model), at.new_zeros(num, d_model)
        scale = 1.0
        if settings.variant == "original":
            keys += at / at.square().sum(-1, keepdim=True)
            keys[0] *= fires_at(network.activation, at.device)
            generator = torch.Generator().manual_seed(settings.seed)
            values += torch.randn(num, d_model, generator=generator).to(at)
            scale = settings.value_scale
        self.keys, self.values = nn.Parameter(keys), nn.Parameter(values)
        self.biases = nn.Parameter(at.new_zeros(branches, num))
        self.scales = nn.Parameter(at.new_full((num,), scale))

    @property
    def neurons(self) -> Neurons:
        """As they are now."""
        return Neurons(self.keys, self.biases, self.values * self.scales[:, None])


@torch.enable_grad()
def fitted(
    vlm: VLM,
    network: FeedForward,
    request: Request,
    memories: Float[Tensor, "memory d_model"],
    settings: PatchSettings,
) -> Neurons:
    """The neurons that make a request's answer right.

    Raises:
        AttribError: The loss is not finite.
    """
    original = settings.variant == "original"
    at = request.x[request.wrong if original else slice(None)][: settings.max_neurons]
    growing = TrainablePatch(network, at, settings)
    if len(at):
        elsewhere = memory_loss(settings, memories.to(at.device))
        _fit(vlm, network, request, growing, at, elsewhere, settings)
    return Neurons(**{name: t.detach() for name, t in growing.neurons.tensors.items()})


Elsewhere = Callable[[Neurons, Float[Tensor, " neuron"], int], Float[Tensor, ""]]


def _fit(
    vlm: VLM,
    network: FeedForward,
    request: Request,
    growing: TrainablePatch,
    at: Float[Tensor, "neuron d_model"],
    elsewhere: Elsewhere,
    s: PatchSettings,
) -> None:
    optimizer = torch.optim.Adam(
        growing.parameters(), lr=s.learning_rate, weight_decay=s.weight_decay
    )
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=PATIENCE)
    for step in range(s.steps):
        neurons = growing.neurons
        with patched(network, neurons):
            logits = vlm.unembed(request.run())
        own = neurons.heard(at).diagonal()
        edit, fires = target_loss(logits, request.labels), _worst(-own, s.top_activation)
        silent = elsewhere(neurons, own, step)
        loss = edit + s.activation_weight * fires + s.memory_weight * silent
        if not bool(loss.isfinite()):
            raise AttribError(f"tp: the loss is {loss.item()}; a smaller learning_rate would help")
        if step % s.look_every == 0:
            plateau.step(loss.item())
            right = bool((logits.argmax(-1) == request.labels).all())
            # An exponential is at most 1 where its margin holds; silence has two of them.
            if s.variant == "original" and right and fires <= 1 and silent <= 2:
                break
        optimizer.zero_grad()
        named = list(growing.parameters())
        for value, grad in zip(named, torch.autograd.grad(loss, named), strict=True):
            value.grad = grad
        nn.utils.clip_grad_norm_(named, s.clip)
        optimizer.step()


def memory_loss(settings: PatchSettings, memories: Float[Tensor, "memory d_model"]) -> Elsewhere:
    """How loudly neurons hear remembered states (Transformer-Patcher, section 3.2.2)."""

    def original(neurons: Neurons, own: Tensor, step: int) -> Tensor:
        del step
        heard = neurons.heard(memories)
        beside = _worst(heard - own + settings.margin, settings.top_memory)
        return beside + _worst(heard + settings.margin, settings.top_memory)

    def liveedit(neurons: Neurons, own: Tensor, step: int) -> Tensor:
        del own
        # Each step another stretch of memories, in the place of a line of Wikipedia.
        start = step * LINE % max(1, len(memories) - LINE)
        return neurons.heard(memories[start : start + LINE]).relu().exp().mean()

    return original if settings.variant == "original" else liveedit


LINE = 32  # states, about as many as a line of text has


def _worst(values: Tensor, num: int) -> Tensor:
    """The mean exponential of the `num` largest values."""
    return values.flatten().topk(min(num, values.numel())).values.exp().mean()
