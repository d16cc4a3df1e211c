"""A training's numbers as they come, for TensorBoard."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from attrib.errors import SetupError

Watch = Callable[[int, Mapping[str, float]], None]
FOLDER = "tensorboard"


@contextmanager
def tensorboard(out: Path) -> Iterator[Watch]:
    """Takes a step and its numbers, and writes them into `out / "tensorboard"`.

    Raises:
        SetupError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise SetupError(
            f"TensorBoard is not installed ({error}): pip install 'attrib[tensorboard]'"
        ) from error
    with SummaryWriter(str(out / FOLDER)) as writer:

        def watch(step: int, numbers: Mapping[str, float]) -> None:
            for name, value in numbers.items():
                writer.add_scalar(name, value, step)

        yield watch
