"""Route a batch: run it several times in different states of a model, and put rows together.

Inside `routed(vlm, route)`, `vlm.logits`, `vlm.last_logits` and `vlm.generate` call
`route(batch, run)`, where `run()` runs the batch in the model's current state. Contexts nest: the
innermost route is asked first, and its `run` asks the next one.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any

from attrib.model.batch import Batch
from attrib.model.prompt_rewriting import pushed

Route = Callable[[Batch, Callable[[], Any]], Any]


def routed(vlm: Any, route: Route) -> AbstractContextManager[None]:
    """Let `route` run the batches of a model inside the context."""
    return pushed(vlm._routes, route)


def routable(method: Callable[..., Any]) -> Callable[..., Any]:
    """Make a method of a model, whose first argument is a batch, ask the innermost route."""

    @wraps(method)
    def asked(vlm: Any, batch: Batch, *args: Any, **kwargs: Any) -> Any:
        if not vlm._routes:
            return method(vlm, batch, *args, **kwargs)
        route = vlm._routes.pop()
        try:
            return route(batch, lambda: asked(vlm, batch, *args, **kwargs))
        finally:
            vlm._routes.append(route)

    return asked
