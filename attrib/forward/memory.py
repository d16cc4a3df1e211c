"""Memory of passes: how many samples and perturbed copies run at once, and fewer if out of it."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence

import psutil
import torch
from torch import Tensor

from attrib.errors import is_out_of_memory
from attrib.forward.suffix import Suffix
from attrib.model.batch import Batch
from attrib.model.devices import execution_device
from attrib.model.logits import kept_positions
from attrib.model.precision import widened
from attrib.model.vlm import VLM

logger = logging.getLogger("attrib")

# Positions per pass: enough to keep a device busy.
POSITIONS = {"cpu": 2048, "other": 32768}
STREAMS = 3  # per position besides a module's own activations: the stream, its norm, the sum
CPU_SAMPLES = 16  # larger batches leave the caches: 8 to 32 samples are fastest
SHARE = 0.5  # of the free memory, for copies; the rest is for logits and for what is fragmented


def samples_at_once(vlm: VLM, batch: Batch) -> int:
    """Number of samples like those of `batch` per pass: what is efficient and fits in memory.

    Memory is that which is free now on the fullest device. A CPU has enough work with a few
    samples; other devices take as many as fill `POSITIONS`.
    """
    cpu, num_pos = vlm.device.type == "cpu", batch["text"].shape[1]
    free = min(available_bytes(execution_device(layer)) for layer in vlm.layers)
    fit = min(
        POSITIONS["cpu" if cpu else "other"] // num_pos, int(SHARE * free) // _each(vlm, batch)
    )
    return max(1, min(fit, CPU_SAMPLES) if cpu else fit)


def _each(vlm: VLM, batch: Batch) -> int:
    """Bytes that a sample's pass needs at most in any analysis.

    Every layer's output and its copy in a suffix, every layer's keys and values, the activations of
    one layer, and the logits.
    """
    num_pos, config = batch["text"].shape[1], vlm.model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    d_head = getattr(config, "head_dim", None) or vlm.d_model // config.num_attention_heads
    kept = vlm.num_layers * (2 * vlm.d_model + 2 * heads * d_head)
    one_layer = STREAMS * vlm.d_model + layer_width(vlm)
    last = batch["last"].int().argmax(1)
    logits = (
        kept_positions(vlm.model, vlm.components.decoder, last, num_pos)
        * vlm.components.head.out_features
    )
    item = vlm.dtype.itemsize
    return num_pos * (kept + one_layer) * item + logits * widened(vlm.dtype).itemsize


def copies_at_once(suffix: Suffix, max_copies: int | None) -> int:
    """Number of perturbed copies per pass: `max_copies`, or what is efficient and fits in memory.

    Memory is that which is free now on the fullest device. A copy needs its states and, in the
    layer that runs, its own copies of the keys and values of the prefix.
    """
    if max_copies:
        return max_copies
    kind = "cpu" if suffix.last.device.type == "cpu" else "other"
    each = chunk_elements(suffix, 1, [1] * suffix.vlm.num_layers) * suffix.hidden[0].element_size()
    free = min(map(available_bytes, {h.device for h in suffix.hidden.values()}))
    return max(1, min(POSITIONS[kind] // suffix.num_pos, int(SHARE * free) // each))


def chunk_elements(suffix: Suffix, at_once: int, per_layer: Sequence[int]) -> int:
    """Peak number of elements for the perturbed copies of one chunk.

    Args:
        suffix: The positions that run.
        at_once: How many copies run together.
        per_layer: How many copies are perturbed in each layer.
    """
    stream, batch = suffix.num_pos * suffix.vlm.d_model, len(suffix.last)
    mlp = suffix.num_pos * layer_width(suffix.vlm) - 2 * stream
    attention = 4 * stream
    if suffix.prefix:
        kv = suffix.prefix[0]
        front = kv.keys[0].numel() + kv.values[0].numel()
        # Joined with the copy's own; copied before that if examples are selected.
        attention += front * (2 if batch > 1 else 1) + 2 * stream
    # Copies perturbed after a layer do not run it; the last layer may have a single query.
    last = min(at_once, sum(per_layer[:-1]))
    whole = last if suffix.query is None else min(at_once, sum(per_layer[:-2]))
    return STREAMS * stream * at_once + max(whole * max(attention, mlp), last * attention)


def layer_width(vlm: VLM) -> int:
    """Elements that a layer's matrices produce per position: its parameters over d_model."""
    return math.ceil(sum(w.numel() for w in vlm.layers[0].parameters()) / vlm.d_model)


def free_memory() -> None:
    """Free what a failed attempt left behind, before a smaller one."""
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)


def available_bytes(device: torch.device) -> int:
    """Free memory of a device; of the machine for the CPU."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return psutil.virtual_memory().available


def in_chunks(run: Callable[[slice], Tensor], num: int, size: int) -> Iterator[Tensor]:
    """Yield `run(slice)` for slices of at most `size` that cover 0 to `num`, in order.

    If memory runs out, the slice is halved and later slices have that size. If a slice of one does
    not fit, the error is raised.
    """
    start = 0
    while start < num:
        length = min(size, num - start)
        result = _attempt(run, slice(start, start + length), final=length == 1)
        if result is None:
            size = (length + 1) // 2
            logger.warning("out of memory: continuing with %d rows at a time", size)
        else:
            yield result
            start += length


def _attempt(run: Callable[[slice], Tensor], chunk: slice, *, final: bool) -> Tensor | None:
    # A function of its own, because the error keeps the tensors of all its frames alive.
    try:
        return run(chunk)
    except (RuntimeError, MemoryError) as error:
        if final or not is_out_of_memory(error):
            raise
    free_memory()
    return None
