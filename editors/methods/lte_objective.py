"""The objective of LTE, and what it trains: low-rank additions to a decoder, or all its layers.

New answers behind the edit's text, old answers for all other inputs. Low rank: Hu et al. 2021
("LoRA"), y + alpha / rank * up(down(x)) for the output y of a linear layer, with `up` zero before
training, by the library peft.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attrib.data.samples import EditRequest
from attrib.errors import SetupError
from attrib.model.adapters import linears
from attrib.model.batch import IGNORE_INDEX
from attrib.model.devices import loaded, loaded_weights
from attrib.model.vlm import VLM
from attrib.model.wrapped import refuse_packed
from editors.base import WeightEdit, encode_requests
from editors.context import PromptStarts, fact_of, prepend_to_prompts, text_tokens
from editors.methods.objective import EditObjective
from editors.training.config import EditorConfig
from editors.training.dataset import CachedDataset, PrefixRows
from editors.training.end_token import without_end_token
from editors.training.layer_calls import around_layers
from editors.training.losses import LOCALITY, ROLES
from editors.weights.passes import WeightCaller

# Names of the projections to queries, keys and values in all families, alone or fused.
QKV_NAMES = re.compile(
    r"[qkv]_proj|qkv_proj|qkv|Wqkv|W_pack|c_attn|query|key|value|query_key_value"
)

NAME = "edit"  # peft's name for the additions
Result = TypeVar("Result")
NO_EDIT = -1


class LowRank(nn.Module):
    """Low-rank additions to the query, key and value projections of some layers, in float32.

    While they are applied, peft's layers replace the model's own, which are never changed.
    """

    def __init__(self, vlm: VLM, layers: Sequence[int], rank: int, alpha: float, seed: int):
        super().__init__()
        self.layers = list(layers)
        self._wrapped = _peft_layers(qkv_projections(vlm, layers), rank, alpha, seed)
        # The trained parts, without the layers that are wrapped.
        self.parts = nn.ModuleDict(
            {key: nn.ModuleDict({"down": one.lora_A[NAME], "up": one.lora_B[NAME]})
             for key, one in self._wrapped.items()}
        )  # fmt: skip

    @contextmanager
    def applied(self, vlm: VLM, layers: Sequence[int] | None = None) -> Iterator[None]:
        """Apply the additions (default: of all layers) inside the context.

        The model's own weights do not change.
        """
        chosen = self.layers if layers is None else layers
        places = [  # keys are those of `qkv_projections`
            (vlm.layers[int(layer)], ".".join(path), wrapped)
            for key, wrapped in self._wrapped.items()
            for layer, *path in [key.split("/")]
            if int(layer) in chosen
        ]
        own = [layer.get_submodule(path) for layer, path, _ in places]
        try:
            for layer, path, wrapped in places:
                layer.set_submodule(path, wrapped)
            yield
        finally:
            for (layer, path, _), linear in zip(places, own, strict=True):
                layer.set_submodule(path, linear)

    def call(self, vlm: VLM, layer: int, fn: Callable[[], Result]) -> Result:
        """Call `fn` with the additions of one layer applied; gradients reach them."""
        with self.applied(vlm, [layer]):
            return fn()


class AllLayers(nn.Module):
    """Copies of all parameters of some decoder layers, in float32."""

    def __init__(self, vlm: VLM, layers: Sequence[int]):
        super().__init__()
        for layer in layers:
            inside = ((path, one) for path, _, one in linears(vlm.layers[layer]))
            refuse_packed(inside, f"{vlm.name}: layer {layer}")
        whose = {id(p) for layer in layers for p in vlm.layers[layer].parameters()}
        own = {name: p for name, p in vlm.model.named_parameters() if id(p) in whose}
        self.names = {name.replace(".", "/"): name for name in own}
        # By layer: the copies of its parameters, by their names within the layer.
        keys = {id(p): name.replace(".", "/") for name, p in own.items()}
        self.of_layer = [
            {path: keys[id(p)] for path, p in layer.named_parameters() if id(p) in keys}
            for layer in vlm.layers
        ]
        with loaded_weights(vlm.model, own) as weights:
            self.copies = nn.ParameterDict(
                {name.replace(".", "/"): nn.Parameter(p.detach().float().clone())
                 for name, p in weights.items()}
            )  # fmt: skip

    @contextmanager
    def applied(self, vlm: VLM) -> Iterator[None]:
        """Give the model the copies' values inside the context; its own tensors come back."""
        values = {self.names[key]: value.detach() for key, value in self.copies.items()}
        with WeightEdit(values).applied(vlm):
            yield

    def call(self, vlm: VLM, layer: int, fn: Callable[[], Result]) -> Result:
        """Call `fn` while one layer has the copies' values; gradients reach them."""
        dtype, module = vlm.dtype, vlm.layers[layer]
        values = {path: self.copies[key].to(dtype) for path, key in self.of_layer[layer].items()}
        with loaded_weights(module, values):
            return WeightCaller(module, values).call(values, fn)


def _peft_layers(
    own: Mapping[str, nn.Linear], rank: int, alpha: float, seed: int
) -> dict[str, Any]:
    """Layers of peft around some linear layers, which stay in their places."""
    from peft import LoraConfig, inject_adapter_in_model

    flags = {one: [p.requires_grad for p in one.parameters()] for one in own.values()}
    # Injected into a holder, not into the model, so that nothing of the model is renamed.
    holder = nn.ModuleDict(dict(own))
    settings: dict[str, Any] = {"r": rank, "lora_alpha": alpha, "target_modules": list(own)}
    # peft puts the additions on the device of the weights.
    with torch.random.fork_rng(devices=[]), loaded(*own.values()):
        torch.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(**settings), holder, NAME)
    for linear, wanted in flags.items():
        for parameter, flag in zip(linear.parameters(), wanted, strict=True):
            parameter.requires_grad_(flag)
    made: dict[str, Any] = dict(holder.items())
    for one in made.values():
        one.lora_A.float()
        one.lora_B.float()
    return made


def qkv_projections(vlm: VLM, layers: Sequence[int]) -> dict[str, nn.Linear]:
    """The query, key and value projections of some layers, by a key for each.

    Raises:
        SetupError: A layer has none with a known name.
    """
    found = {}
    for layer in layers:
        here = {
            # Inside the adapters of a model that has some: they stay as they are.
            name if place is module else f"{name}.base_layer": module
            for name, place, module in linears(vlm.layers[layer])
            if QKV_NAMES.fullmatch(name.rpartition(".")[2])
        }
        if not here:
            raise SetupError(
                f"{vlm.name}: layer {layer} has no linear layers to queries, keys and values; "
                "parameters='all' trains whole layers"
            )
        found |= {f"{layer}/{name.replace('.', '/')}": one for name, one in here.items()}
    return found


def facts_of(vlm: VLM, config: EditorConfig, requests: Sequence[EditRequest]) -> list[str]:
    """The facts of requests, as they stand in front of questions: without an end token."""
    if config.end_token:
        requests = [without_end_token(vlm, request) for request in requests]
    return [fact_of(request) for request in requests]


@dataclass(eq=False)
class LTEObjective(EditObjective):
    """The loss of a decoder that learns to follow an edit in its prompt (LTE, LiveEdit's code).

    Locality is compared with the original weights, once with the edit's text in front and once
    without.

    Attributes:
        change: What is trained.
    """

    batch_size: ClassVar[int] = 8

    change: LowRank | AllLayers

    def __post_init__(self):
        self.module = self.change
        self.starts = PromptStarts.of(self.vlm)

    def edits(self, data: CachedDataset, items: Sequence[int]) -> list[str]:
        """The texts of some edits."""
        facts = facts_of(self.vlm, self.config, [data.edits[item].request for item in items])
        return [self.config.template.format(fact=fact) for fact in facts]

    def rows(self, data: CachedDataset, items: Sequence[int], roles: Sequence[str]) -> PrefixRows:
        """The inputs of some edits, those of locality once more without the edit's text."""
        rows = super().rows(data, items, roles)
        local = torch.tensor([ROLES[role] in LOCALITY for role in rows.role_of.tolist()])
        index = torch.arange(len(rows.inputs)).repeat_interleave(1 + local.long())
        is_copy = torch.zeros(len(index), dtype=torch.bool)
        is_copy[1:] = index[1:] == index[:-1]
        return PrefixRows(
            [rows.inputs[i] for i in index.tolist()],
            torch.where(is_copy, NO_EDIT, rows.edit_of[index]),
            rows.role_of[index],
        )

    def logits(self, rows: PrefixRows, edits: Sequence[str]) -> Float[Tensor, "token d_vocab"]:
        """Logits of the changed decoder at the answer tokens, row by row."""
        vlm = self.vlm
        batch = encode_requests(vlm, [q.request for q in rows.inputs], padding_side="right")
        assert batch.labels is not None
        texts = ["" if i == NO_EDIT else edits[int(i)] for i in rows.edit_of.tolist()]
        tokens = [text_tokens(vlm, text) for text in texts]
        call = partial(self.change.call, vlm)
        with (
            vlm.rewrite_prompts(lambda given: prepend_to_prompts(vlm, given, self.starts, tokens)),
            around_layers(vlm, call, recompute=self.config.checkpoint_activations),
        ):
            logits = vlm.logits(batch)
        return logits[batch.labels != IGNORE_INDEX]
