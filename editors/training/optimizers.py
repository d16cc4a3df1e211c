"""What moves the parameters of what is trained."""

from collections.abc import Sequence

from torch import nn
from torch.optim import Adam, Muon, Optimizer

from editors.training.schedule import Training


def optimizers(training: Training, parameters: Sequence[nn.Parameter]) -> list[Optimizer]:
    """The optimizers of a training; every parameter is in one of them.

    Muon makes the step of every matrix orthogonal: small adapters then need a quarter of the steps
    that they need with Adam (LOG.md). Its steps are scaled to be as large as Adam's.
    """
    rate = training.learning_rate
    if training.optimizer == "adam":
        return [Adam(parameters, lr=rate)]
    matrices = [p for p in parameters if p.ndim == 2]
    others = [p for p in parameters if p.ndim != 2]
    muon = [Muon(matrices, rate, 0.0, adjust_lr_fn="match_rms_adamw")] if matrices else []
    return [*muon, *([Adam(others, lr=rate)] if others else [])]
