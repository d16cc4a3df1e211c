"""What passes must satisfy that go on from another: replays of the later layers, generated text."""

import torch
from torch import Tensor

from attrib.checks.inputs import NEW_TOKENS, CheckFailed, CheckInputs, Generated, generated
from attrib.forward.hooks import read, write
from attrib.forward.noise import draw_noise
from attrib.forward.replay import CleanPass, logits_from
from attrib.forward.suffix import build_suffix
from attrib.model.precision import WHOLE_PASS

LAYER = 0  # whose output is changed: all others run on the change


def resume_is_bit_equal(inputs: CheckInputs) -> str:
    """Replaying the later layers on a pass's own states reproduces its logits bit for bit.

    A replay from the embedding must have the states of the pass after every layer: from there it
    goes on as one that starts after that layer. The shortest replays are run as well.
    """
    vlm, captured, logits = inputs.vlm, inputs.replayable.captured, inputs.replayable.logits[0]
    states = {-1: captured.embed, **inputs.hidden}
    with read(vlm) as replayed:
        whole = logits_from(vlm, captured, -1, states[-1])
    for layer, hidden in replayed.items():
        if not torch.equal(hidden, states[layer]):
            raise CheckFailed(f"replaying layer {layer} gives another output")
    short = range(max(vlm.num_layers - 2, 0), vlm.num_layers)
    replays = [(-1, whole)] + [(i, logits_from(vlm, captured, i, states[i])) for i in short]
    for layer, replay in replays:
        if not torch.equal(replay, logits):
            raise CheckFailed(f"replaying after layer {layer} gives other logits")
    return f"after each of {vlm.num_layers} layers and the embedding"


def replayed_changes_equal_written_ones(inputs: CheckInputs) -> str:
    """Replaying the later layers on changed states, as patching does, equals writing the change."""
    h = _noisy(inputs)
    ours = logits_from(inputs.vlm, inputs.replayable.captured, LAYER, h)
    pair = ours[inputs.real], _written(inputs, h)[inputs.real]
    return inputs.compare([pair], "logits", WHOLE_PASS)


def suffixes_equal_whole_passes(inputs: CheckInputs) -> str:
    """Running only what noise reaches, as `sensitivity` does, equals a whole pass with hooks."""
    vlm, last, found, h = inputs.vlm, inputs.batch["last"], inputs.replayable, _noisy(inputs)
    index = last.int().argmax(1)
    plain = found.logits[0][last]
    clean = CleanPass(vlm, found.captured, found.hidden, plain, index, inputs.real)
    suffix = build_suffix(clean, int(inputs.batch["text"].any(0).int().argmax()))
    rows = torch.arange(len(index), device=index.device)
    final = suffix.run([LAYER] * len(rows), rows, lambda some: h[some, suffix.start :])
    pair = vlm.unembed(final), _written(inputs, h)[last]
    return inputs.compare([pair], "logits", WHOLE_PASS)


def _noisy(inputs: CheckInputs) -> Tensor:
    """The layer's output with noise of its own size on the text."""
    h, d_model = inputs.hidden[LAYER], inputs.vlm.d_model
    noise = draw_noise(
        inputs.batch, "text", d_model, 0, unit="std", exclude_last=False, seed=0, draw=0
    ).to(h.device)
    return torch.where(noise.at[..., None], (h + noise.scaled(h)).to(h.dtype), h)


def _written(inputs: CheckInputs, h: Tensor) -> Tensor:
    """Logits of a pass in which the layer returns `h` on the text."""
    with write(inputs.vlm, LAYER, lambda _h: h, inputs.batch["text"]):
        return inputs.vlm.logits(inputs.batch)


def first_generated_token_is_the_argmax(inputs: CheckInputs) -> str:
    """Generation starts with the token whose logit is largest."""
    chosen = inputs.generated.tokens[:, :1]
    if len(chosen) != inputs.batch.size:
        raise CheckFailed(f"{len(chosen)} texts are generated for {inputs.batch.size} prompts")
    logits = inputs.plain[inputs.batch["last"]]
    top = logits.gather(1, chosen.to(logits.device))[:, 0]
    return inputs.compare([(top, logits.amax(1))], "its logit and the largest")


def generation_does_not_depend_on_the_batch(inputs: CheckInputs) -> str:
    """Greedy text is the same alone, in a batch, and with right padding, up to rounding.

    Each token is the likeliest, and while texts agree, so do the logits of the next token. Texts
    may part only where the logits of two tokens tie within the rounding of the dtype.
    """
    right = inputs.vlm.encode(inputs.images, inputs.prompts, padding_side="right")
    padded = {"left": inputs.generated, "right": generated(inputs.vlm, right, writing=False)}
    for texts in (*padded.values(), *inputs.generated_alone):
        chosen = texts.logits.gather(-1, texts.tokens[..., None].to(texts.logits.device))
        if not torch.equal(chosen[..., 0], texts.logits.amax(-1)):
            raise CheckFailed("a generated token is not the likeliest")
    for side, texts in padded.items():
        for row, alone in enumerate(inputs.generated_alone):
            _compare(inputs, texts, row, alone, f"logits padded on the {side} and alone")
    return f"{NEW_TOKENS} tokens, alone and padded on either side"


def _compare(inputs: CheckInputs, texts: Generated, row: int, alone: Generated, what: str) -> None:
    same = (texts.tokens[row] == alone.tokens[0]).long().cumprod(0)
    steps = slice(1 + int(same[:-1].sum()))  # the last one chose the first token that differs
    inputs.compare([(texts.logits[row, steps], alone.logits[0, steps])], what, WHOLE_PASS)


def generation_writes_the_prompt_once(inputs: CheckInputs) -> str:
    """During cached generation, `write` acts on the prompt and on no later position."""
    seen, steps = inputs.generated.written, inputs.generated.tokens.shape[1]
    if seen != [tuple(inputs.hidden[0].shape)]:
        raise CheckFailed(f"a write saw {seen}")
    return f"one write of {seen[0]} in {steps} tokens"
