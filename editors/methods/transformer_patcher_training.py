"""How Transformer-Patcher's neurons are initialised and trained for one request."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attrib.errors import AttribError
from attrib.forward.hooks import on_input
from attrib.model.batch import IGNORE_INDEX, Batch
from attrib.model.vlm import VLM
from editors.training.config import EditorConfig
from editors.training.presets import TUNED, TUNED_SMALL, Preset
from editors.weights.components import MLP
from editors.weights.neurons import Neurons, patched, unit_input
from editors.weights.passes import PartialForward, labels_of, partial_forward, target_loss

MemoryLoss = Callable[[Neurons, Float[Tensor, " neuron"], int], Float[Tensor, ""]]
PATIENCE = 3  # checks without progress before the learning rate is halved
LINE = 32  # memories per step of the "liveedit" variant, about as many as a line of text has


class TransformerPatcherConfig(EditorConfig):
    """Options of Transformer-Patcher: how neurons are made.

    Attributes:
        variant: "original", or "liveedit": one neuron from zero, a few steps, hardly any weight on
            its activations elsewhere. Zero times zero has no gradient: in a gated MLP (Llama) this
            neuron never becomes active. Of that program's two defects this one is reproduced; that
            it loses the request after one step is not.
        max_neurons: Largest number of neurons; there is one per wrong answer token.
        steps: Largest number of Adam steps.
        learning_rate: Learning rate, halved when the loss stops falling.
        weight_decay: Weight decay of Adam.
        value_scale: Initial scale of the output weights, which are standard normal.
        activation_weight: Weight of the activation loss, which lets a neuron fire at its token.
        memory_weight: Weight of the memory loss, which silences it elsewhere (published: 5 or 10).
        margin: Margin of the memory loss.
        top_activation: Number of worst neurons in the activation loss.
        top_memory: Number of worst pairs of neuron and remembered state in the memory loss.
        clip: Largest gradient norm.
        look_every: Steps between checks whether the edit is done.
        num_memories: Number of remembered states of training inputs.
    """

    presets: ClassVar[Mapping[str, Preset]] = {
        "tp-original": Preset("Transformer-Patcher, its zsRE settings", {}, {
            "memories": "hidden states of the training edits' inputs (program: of its own data)",
        }),
        TUNED_SMALL: Preset(TUNED, {"value_scale": 1.0, "steps": 500, "num_memories": 2000}),
        "tp-liveedit": Preset("LiveEdit, `tp_vl`", {
            "variant": "liveedit",
            "max_neurons": 1,
            "steps": 25,
            "weight_decay": 0.0,
            "activation_weight": 1e-4,
            "memory_weight": 1e-4,
        }, {
            "the request": "stays the input of every step (program: lost after the first)",
            "memories": "32 states of training inputs a step (program: a line of WikiText-103)",
        }),
    }  # fmt: skip
    large: ClassVar[str] = "tp-original"

    variant: Literal["original", "liveedit"] = "original"
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

    @classmethod
    def auto_preset(cls, vlm: VLM, samples: Any, options: Mapping[str, Any]) -> str:
        """As for all editors, but the preset of the variant that is asked for."""
        variant = options.get("variant")
        return variant if variant == "liveedit" else super().auto_preset(vlm, samples, options)


@dataclass(frozen=True, eq=False)
class PatchedRequest:
    """One request at the layer that is patched.

    Attributes:
        run: Runs the layers from there on.
        labels: The answer tokens.
        x: Inputs of the MLP at the answer's positions.
        wrong: The answer tokens that the model gets wrong.
    """

    run: PartialForward
    labels: Int[Tensor, " token"]
    x: Float[Tensor, "token d_model"]
    wrong: Int[Tensor, " wrong"]


@torch.no_grad()
def run_request(vlm: VLM, network: MLP, layer: int, batch: Batch) -> PatchedRequest:
    """Run a batch of one request up to the layer that is patched."""
    run, labels = partial_forward(vlm, batch, layer), labels_of(batch)
    x: list[Tensor] = []
    with on_input(network.up.module, lambda h, _args, _kwargs: x.append(h)):
        right = vlm.unembed(run()).argmax(-1) == labels
    assert batch.labels is not None
    own = at_answers(x[0], batch.labels).float()
    return PatchedRequest(run, labels, own, (~right).nonzero()[:, 0].to(own.device))


def at_answers(
    x: Float[Tensor, "*rest d_model"], labels: Int[Tensor, "batch pos"]
) -> Float[Tensor, "token d_model"]:
    """Inputs of an MLP at the positions with a label."""
    return x.reshape(*labels.shape, x.shape[-1])[labels.to(x.device) != IGNORE_INDEX]


class TrainablePatch(nn.Module):
    """Neurons in training, one for each of the states `at`.

    In the original recipe a key is the state over its squared length, so that the pre-activation is
    1 there (in a gated MLP: what the activation function maps to 1), and the value is random.
    """

    def __init__(
        self,
        network: MLP,
        at: Float[Tensor, "neuron d_model"],
        config: TransformerPatcherConfig,
    ):
        super().__init__()
        num, d_model = at.shape
        branches = 1 if network.gate is None else 2
        keys, values = at.new_zeros(branches, num, d_model), at.new_zeros(num, d_model)
        scale = 1.0
        if config.variant == "original":
            keys += at / at.square().sum(-1, keepdim=True)
            keys[0] *= unit_input(network.activation, at.device)
            generator = torch.Generator().manual_seed(config.seed)
            values += torch.randn(num, d_model, generator=generator).to(at)
            scale = config.value_scale
        self.keys, self.values = nn.Parameter(keys), nn.Parameter(values)
        self.biases = nn.Parameter(at.new_zeros(branches, num))
        self.scales = nn.Parameter(at.new_full((num,), scale))

    @property
    def neurons(self) -> Neurons:
        """The neurons as they are now."""
        return Neurons(self.keys, self.biases, self.values * self.scales[:, None])


@torch.enable_grad()
def train_neurons(
    vlm: VLM,
    network: MLP,
    request: PatchedRequest,
    memories: Float[Tensor, "memory d_model"],
    config: TransformerPatcherConfig,
) -> Neurons:
    """The neurons that make a request's answer right.

    Raises:
        AttribError: The loss is not finite.
    """
    original, c = config.variant == "original", config
    at = request.x[request.wrong if original else slice(None)][: c.max_neurons]
    patch = TrainablePatch(network, at, c)
    memory_loss_of, parameters = memory_loss(c, memories.to(at.device)), list(patch.parameters())
    optimizer = torch.optim.Adam(parameters, lr=c.learning_rate, weight_decay=c.weight_decay)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=PATIENCE)
    for step in range(c.steps if len(at) else 0):
        neurons = patch.neurons
        with patched(network, neurons):
            logits = vlm.unembed(request.run())
        own = neurons.pre_activations(at).diagonal()
        edit_loss = target_loss(logits, request.labels)
        activation = _worst(-own, c.top_activation)
        memory = memory_loss_of(neurons, own, step)
        rest = c.activation_weight * activation + c.memory_weight * memory
        loss = edit_loss + rest.to(edit_loss.device)
        if not bool(loss.isfinite()):
            raise AttribError(f"tp: the loss is {loss.item()}; a smaller learning_rate would help")
        if step % c.look_every == 0:
            plateau.step(loss.item())
            right = bool((logits.argmax(-1) == request.labels).all())
            # An exponential is at most 1 where its margin holds; the memory loss has two of them.
            if original and right and activation <= 1 and memory <= 2:
                break
        optimizer.zero_grad()
        for value, grad in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            value.grad = grad
        nn.utils.clip_grad_norm_(parameters, c.clip)
        optimizer.step()
    return Neurons(**{name: t.detach() for name, t in patch.neurons.tensors.items()})


def memory_loss(
    config: TransformerPatcherConfig, memories: Float[Tensor, "memory d_model"]
) -> MemoryLoss:
    """The loss on pre-activations at remembered states (Transformer-Patcher, section 3.2.2)."""

    def original(neurons: Neurons, own: Tensor, step: int) -> Tensor:
        del step
        elsewhere = neurons.pre_activations(memories)
        relative = _worst(elsewhere - own + config.margin, config.top_memory)
        return relative + _worst(elsewhere + config.margin, config.top_memory)

    def liveedit(neurons: Neurons, own: Tensor, step: int) -> Tensor:
        del own
        # Each step takes another stretch of memories, in the place of a line of Wikipedia.
        start = step * LINE % max(1, len(memories) - LINE)
        return neurons.pre_activations(memories[start : start + LINE]).relu().exp().mean()

    return original if config.variant == "original" else liveedit


def _worst(values: Tensor, num: int) -> Tensor:
    """The mean exponential of the `num` largest values."""
    return values.flatten().topk(min(num, values.numel())).values.exp().mean()
