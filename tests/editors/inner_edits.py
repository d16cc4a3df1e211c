"""What tests of editors that change weights share."""

import torch
from conftest import picture

from attrib.data.samples import EditRequest

BOTH = ("llava", "blip2_opt")  # gated and plain feed-forward networks, projector and Q-Former


def asked(i=0, target="blue thing"):
    """A request with an image."""
    return EditRequest(picture(seed=i), "What is red?", target)


TEXT = EditRequest(None, "nq question: who wrote it?", "Emma")


@torch.no_grad()
def logits(vlm, request, edit=None):
    """Of the request with its target, with or without an edit."""
    batch = vlm.encode([request.image], [request.prompt], [request.target])
    if edit is None:
        return vlm.logits(batch)
    with edit.applied(vlm):
        return vlm.logits(batch)


@torch.no_grad()
def loss(vlm, request, edit=None):
    """Mean cross-entropy of the target."""
    batch = vlm.encode([request.image], [request.prompt], [request.target])
    at = batch.labels != -100
    wanted = batch.labels[at]
    return torch.nn.functional.cross_entropy(logits(vlm, request, edit)[at], wanted).item()


def state(vlm):
    """A copy of all weights."""
    return {name: value.clone() for name, value in vlm.model.state_dict().items()}


def assert_restored(vlm, before):
    """The weights are those of `before`, bit for bit, and nothing hangs on the model."""
    for name, value in vlm.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    for name, parameter in vlm.model.named_parameters():
        assert parameter.grad is None, name
    for name, module in vlm.model.named_modules():
        kinds = (module._forward_hooks, module._forward_pre_hooks)
        hooks = [hook for kind in kinds for hook in kind.values()]
        assert all(getattr(hook, "__module__", "").startswith("transformers") for hook in hooks), (
            name
        )
