"""Part of a model attending by a function of ours, for as long as a context is open."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

# Called as transformers calls it, with (module, query, key, value, mask, **more), tensors of
# "batch heads pos d_head"; returns what the module is to go on with, "batch pos heads d_head".
Respond = Callable[..., Tensor]
OURS, SDPA = "attrib_respond", "sdpa"

# Attention functions are looked up by name from inside the model: what the running context wants
# done reaches ours through a context variable.
_RESPOND: ContextVar[Respond] = ContextVar("respond")


def _respond(*call: Any, **more: Any) -> tuple[Tensor, None]:
    return _RESPOND.get()(*call, **more), None


AttentionInterface.register(OURS, _respond)
AttentionMaskInterface.register(OURS, sdpa_mask)


@contextmanager
def attending_by(part: nn.Module, respond: Respond | None) -> Iterator[None]:
    """Let a part of a model attend by `respond`, or by sdpa with nobody looking if it is None."""
    configs = {id(c): c for m in part.modules() if (c := getattr(m, "config", None))}
    before = {key: config._attn_implementation for key, config in configs.items()}
    token = _RESPOND.set(respond) if respond else None
    try:
        for config in configs.values():
            config._attn_implementation = OURS if respond else SDPA
        yield
    finally:
        if token:
            _RESPOND.reset(token)
        for key, config in configs.items():
            config._attn_implementation = before[key]
