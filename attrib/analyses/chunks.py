"""Much work in chunks that fit into memory."""

import logging
from collections.abc import Callable, Iterator

from torch import Tensor

from attrib.memory import free_memory, is_out_of_memory

logger = logging.getLogger("attrib")


def in_chunks(run: Callable[[slice], Tensor], num: int, size: int) -> Iterator[Tensor]:
    """Results of `run` on slices that cover 0 to `num`, in order, each of at most `size`.

    Where memory runs out, the slice is halved, and the rest goes on with that size. Where not even
    one fits, the error is passed on.
    """
    start = 0
    while start < num:
        length = min(size, num - start)
        done = _attempt(run, slice(start, start + length), final=length == 1)
        if done is None:
            size = (length + 1) // 2
            logger.warning("out of memory: going on with %d disturbed examples at a time", size)
        else:
            yield done
            start += length


def _attempt(run: Callable[[slice], Tensor], chunk: slice, *, final: bool) -> Tensor | None:
    # In a function of its own: the error holds on to the tensors of all frames it came through.
    try:
        return run(chunk)
    except (RuntimeError, MemoryError) as error:
        if final or not is_out_of_memory(error):
            raise
    free_memory()
    return None
