"""Training of an embedded backbone: seeded and resumable, with stages that end on accuracy.

1. Vision pre-training (`vision_pretraining`): shape, colour and place of every visual token.
2. The curriculum (`curriculum`): packed questions, captions and facts. A stage begins when the
   model answers every kind of question of the stage before on fresh scenes. Before the last stage
   the model grows to its full depth (`weight_surgery`).
3. After `Recipe.hold` steps of the last stage the learning rate decays to zero.

Every step draws its data from (seed, step), so a resumed run equals an uninterrupted one.
"""

import json
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from attrib.data.scenes import Scene, make_scene, scene_seeds
from attrib.files import WEIGHTS, atomic_write, write_text
from attrib.zoo import Backbone, build, language_model, vision_parameters, weight_surgery
from attrib.zoo.curriculum import STAGES, CurriculumSampler, Depth
from attrib.zoo.evaluate import questions_about
from attrib.zoo.packing import pack, packed_loss, register_attention
from attrib.zoo.vision_pretraining import pixels_of, pretrain_vision

Log = Callable[[str], object]


@dataclass(frozen=True)
class Recipe:
    """How a backbone is trained.

    Attributes:
        seed: of weights and data.
        align_steps: of vision pre-training.
        rows: packed rows per step.
        length: positions of a row.
        language_from: embedded backbone whose language model is the starting point.
        learning_rate: at its peak.
        warmup: steps until then.
        hold: steps in the last stage before the learning rate decays.
        decay: steps over which it decays to zero.
        memory: factor of the running accuracy per step; 0.97 averages about 30 steps.
    """

    seed: int = 0
    align_steps: int = 400
    rows: int = 32
    length: int = 272
    language_from: str | None = None
    learning_rate: float = 2e-3
    warmup: int = 50
    hold: int = 450
    decay: int = 600
    memory: float = 0.97


@dataclass
class Progress:
    """State of a run."""

    step: int = 0
    stage: int = 0
    stage_began: int = 0
    accuracy: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


class Run:
    """One training run in a folder: `checkpoint.safetensors`, `optimizer.pt`, `progress.json`."""

    def __init__(
        self,
        name: str,
        folder: Path,
        recipe: Recipe,
        device: str = "cpu",
        compile: Callable[[nn.Module], Callable] = torch.compile,
    ):
        self.name, self.folder, self.recipe, self.device = name, folder, recipe, device
        self.compile, self.progress = compile, Progress()
        # A copied language model has completed all stages but the last.
        self.progress.stage = len(STAGES) - 1 if recipe.language_from is not None else 0
        model, self.processor = build(name, recipe.seed)
        self._set_model(model)
        self.sampler = CurriculumSampler.of(self.model, self.processor)

    def _set_model(self, model: Backbone) -> None:
        """Train `model` from now on, with fresh optimizers."""
        model.set_attn_implementation({"text_config": register_attention()})
        self.model = model
        nn.Module.to(model, self.device).train()
        self.decoder = self.compile(language_model(model))
        self.optimizers = make_optimizers(model, self.recipe.learning_rate)

    def _fit_depth(self, depth: Depth) -> None:
        """Bring a model of this depth to the depth of the current stage."""
        target, seed = STAGES[self.progress.stage].depth, self.recipe.seed + 1
        if target == "half" and depth == "full":
            self._set_model(weight_surgery.keep_lower_half(self.model, self.name, seed))
        if target == "full" and depth == "half":
            self.model.set_attn_implementation({"text_config": "sdpa"})
            model = weight_surgery.grow_depth(self.model, self.name, seed)
            rng = random.Random(self.recipe.seed)
            scenes = _fresh_scenes(rng, self.recipe.rows)
            prompts = [prompt for _, _, prompt in questions_about(scenes, rng)]
            weight_surgery.add_outlier_channel(model, self.processor, scenes, prompts)
            self._set_model(model)

    def train(self, log: Log = print, save_every: int = 100) -> Backbone:
        """Train to the end, from the last checkpoint if there is one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self._resume():
            self._begin(log)
            self._save()
        while (rate := self._rate()) > 0:
            began = time.monotonic()
            loss, correct = self._step(rate)
            self.progress.seconds += time.monotonic() - began
            self._update_accuracy(correct)
            if self.progress.step % 25 == 0:
                log(self._line(loss, rate))
            self._advance(log)
            if self.progress.step % save_every == 0:
                self._save()
        self._save()
        return self.model.eval()

    def _begin(self, log: Log) -> None:
        r = self.recipe
        if r.language_from is not None:
            weight_surgery.copy_language_model(WEIGHTS / r.language_from, self.model)
        tokenizer = self.processor.tokenizer
        for scores in pretrain_vision(self.model, tokenizer, r.align_steps, r.seed, self.device):
            log("vision " + " ".join(f"{k} {v:.3f}" for k, v in scores.items()))

    def _rate(self) -> float:
        """The learning rate as a share of its peak."""
        p, r = self.progress, self.recipe
        if p.stage < len(STAGES) - 1:
            return min(1.0, (p.step + 1) / r.warmup)
        held = p.step - p.stage_began  # the model has grown, so the rate warms up again
        return min(1.0, (held + 1) / r.warmup) * min(1.0, 1 - (held - r.hold) / r.decay)

    def _step(self, rate: float) -> tuple[float, dict[str, Tensor]]:
        p, r = self.progress, self.recipe
        rng = random.Random(f"{r.seed}:{p.step}")
        scenes = _fresh_scenes(rng, r.rows)
        rows = [self.sampler.sample(scene, STAGES[p.stage], rng) for scene in scenes]
        batch = pack(self.sampler.prefix, rows, r.length, self.processor.tokenizer.pad_token_id)
        pixels = pixels_of(scenes, [rng.getrandbits(30) for _ in scenes])
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["peak"]
            optimizer.zero_grad()
        loss, correct = packed_loss(self.model, self.decoder, batch, pixels, self.device)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        p.step += 1
        return loss.item(), correct

    def _update_accuracy(self, correct: dict[str, Tensor]) -> None:
        memory, accuracy = self.recipe.memory, self.progress.accuracy
        for kind, hits in correct.items():
            now = hits.float().mean().item()
            accuracy[kind] = memory * accuracy.get(kind, now) + (1 - memory) * now

    def _advance(self, log: Log) -> None:
        p = self.progress
        stage = STAGES[p.stage]
        worst = min(p.accuracy.get(kind, 0.0) for kind in stage.kinds)
        if worst >= stage.mastered and p.step - p.stage_began >= stage.min_steps:
            p.stage, p.stage_began = p.stage + 1, p.step
            self._save_weights(f"after-stage-{p.stage - 1}.safetensors")
            self._fit_depth(stage.depth)
            log(f"step {p.step}: mastered {stage.name!r}, next {STAGES[p.stage].name!r}")

    def _line(self, loss: float, rate: float) -> str:
        p = self.progress
        kinds = " ".join(f"{k} {v:.2f}" for k, v in sorted(p.accuracy.items()))
        head = f"{self.name} step {p.step} {p.seconds:.0f}s stage {p.stage}"
        return f"{head} rate {rate:.2f} loss {loss:.3f} | {kinds}"

    def _save(self) -> None:
        self._save_weights("checkpoint.safetensors")
        with atomic_write(self.folder / "optimizer.pt") as file:
            torch.save([optimizer.state_dict() for optimizer in self.optimizers], file)
        record = {"recipe": asdict(self.recipe), "progress": asdict(self.progress)}
        write_text(self.folder / "progress.json", json.dumps(record, indent=1))

    def _save_weights(self, name: str) -> None:
        state = {k: v.detach().cpu().contiguous() for k, v in self.model.state_dict().items()}
        with atomic_write(self.folder / name) as file:
            file.write(save(state))

    def _resume(self) -> bool:
        if not (self.folder / "progress.json").exists():
            return False
        recipe, progress = read_progress(self.folder)
        if recipe != asdict(self.recipe):
            raise ValueError(
                f"{self.folder} was trained by another recipe: {recipe}; "
                "choose another --runs folder, or the same recipe"
            )
        self.progress = Progress(**progress)
        self._fit_depth("full")
        self.model.load_state_dict(load_file(self.folder / "checkpoint.safetensors"))
        states = torch.load(self.folder / "optimizer.pt", weights_only=True)
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(state)
        return True


def read_progress(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The recipe and the progress of the run in a folder."""
    record = json.loads((folder / "progress.json").read_text())
    return record["recipe"], record["progress"]


def make_optimizers(model: Backbone, peak: float) -> list[torch.optim.Optimizer]:
    """AdamW, at a quarter of the rate for the vision parameters, and Muon for decoder matrices."""
    vision = vision_parameters(model)
    decoder = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    seen = {id(p) for p in vision}
    matrices = [p for p in decoder if id(p) not in seen]
    seen |= {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in seen]
    groups = [{"params": rest, "peak": peak}, {"params": vision, "peak": peak / 4}]
    adam = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.02)
    muon = torch.optim.Muon(
        [{"params": matrices, "peak": peak}], weight_decay=0.02, adjust_lr_fn="match_rms_adamw"
    )
    return [adam, muon]


def _fresh_scenes(rng: random.Random, count: int) -> list[Scene]:
    seeds = scene_seeds("backbone", rng.getrandbits(40))
    return [make_scene(seed) for seed in islice(seeds, count)]
