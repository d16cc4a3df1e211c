"""Training of an embedded backbone: seeded, resumable, advancing on measured accuracy.

1. The eyes (`pretrain_vision`): shapes, colours and places of every visual token.
2. The lessons (`lessons`): packed questions, captions and facts; a stage of the curriculum begins
   when every kind of question of the stage before is answered well on fresh scenes. Before the
   last stage the model grows to its full depth (`growth`).
3. After the last stage has been held for `Recipe.hold` steps, the learning rate decays to zero.

Every step draws its own data from (seed, step), so a resumed run sees what an uninterrupted one
would have seen.
"""

import json
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from attrib.data.scenes.scene import Scene, make_scene, scene_seeds
from attrib.environment import WEIGHTS
from attrib.zoo.models import Backbone, build, language_model, output_embedding
from attrib.zoo.training import attention
from attrib.zoo.training.curriculum import STAGES, Depth
from attrib.zoo.training.depth_growth import grow_depth, keep_lower_half
from attrib.zoo.training.objective import build_sampler, lesson_loss, make_optimizers
from attrib.zoo.training.outlier_channel import add_outlier_channel
from attrib.zoo.training.packing import pack
from attrib.zoo.training.scores import questions_about
from attrib.zoo.training.vision_pretraining import pixels_of, pretrain_vision

Log = Callable[[str], None]


@dataclass(frozen=True)
class Recipe:
    """How a backbone is trained."""

    seed: int = 0
    align_steps: int = 400
    rows: int = 32
    length: int = 272
    learning_rate: float = 2e-3
    warmup: int = 50
    hold: int = 450
    """Steps in the last stage before the learning rate starts to fall."""
    decay: int = 600
    """Steps over which it falls to zero."""
    memory: float = 0.97
    """Of the running accuracy: about 30 steps."""
    language_from: str | None = None
    """A shipped backbone whose language model is the starting point."""


@dataclass
class Progress:
    """Where a run stands."""

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
        # A language model that is taken over has had the lessons before the last.
        self.progress.stage = len(STAGES) - 1 if recipe.language_from is not None else 0
        model, self.processor = build(name, recipe.seed)
        self._use(model)
        self.teacher, self.prefix = build_sampler(self.model, self.processor)

    def _use(self, model: Backbone) -> None:
        """Make `model` the one that is trained; its optimizers start anew."""
        model.set_attn_implementation({"text_config": attention.register()})
        self.model = model
        nn.Module.to(model, self.device).train()
        self.decoder = self.compile(language_model(model))
        self.optimizers = make_optimizers(model, self.recipe.learning_rate)

    def _fit_depth(self, depth: Depth) -> None:
        """Bring a model of this depth to the depth of the stage that has begun."""
        wanted = STAGES[self.progress.stage].depth
        if wanted == "half" and depth == "full":
            self._shrink()
        if wanted == "full" and depth == "half":
            self._grow()

    def _shrink(self) -> None:
        self._use(keep_lower_half(self.model, self.name, self.recipe.seed + 1))

    def _grow(self) -> None:
        """Twice the depth, and the channel that large models have (see `growth`, `rogue`)."""
        self.model.set_attn_implementation({"text_config": "sdpa"})
        model = grow_depth(self.model, self.name, self.recipe.seed + 1)
        rng = random.Random(self.recipe.seed)
        scenes = _fresh_scenes(rng, self.recipe.rows)
        prompts = [prompt for _, _, prompt in questions_about(scenes, rng)]
        add_outlier_channel(model, self.processor, scenes, prompts)
        self._use(model)

    def train(self, log: Log = print, save_every: int = 100) -> Backbone:
        """Train to the end, from the last checkpoint where there is one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self._resume():
            self._begin(log)
            self._save()
        while (rate := self._rate()) > 0:
            began = time.monotonic()
            loss, correct = self._step(rate)
            self.progress.seconds += time.monotonic() - began
            self._remember(correct)
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
            _take_language(self.model, WEIGHTS / r.language_from)
        for scores in pretrain_vision(
            self.model, self.processor.tokenizer, r.align_steps, r.seed, self.device
        ):
            log("vision " + " ".join(f"{k} {v:.3f}" for k, v in scores.items()))

    def _rate(self) -> float:
        p, r = self.progress, self.recipe
        if p.stage < len(STAGES) - 1:
            return min(1.0, (p.step + 1) / r.warmup)
        held = p.step - p.stage_began  # the last stage warms up anew: it trains a grown model
        return min(1.0, (held + 1) / r.warmup) * min(1.0, 1 - (held - r.hold) / r.decay)

    def _step(self, rate: float) -> tuple[float, dict[str, Tensor]]:
        p, r = self.progress, self.recipe
        rng = random.Random(f"{r.seed}:{p.step}")
        scenes = _fresh_scenes(rng, r.rows)
        stage = STAGES[p.stage]
        lessons = [self.teacher.lesson(s, stage, rng) for s in scenes]
        batch = pack(self.prefix, lessons, r.length, self.processor.tokenizer.pad_token_id)
        pixels = pixels_of(scenes, [rng.getrandbits(30) for _ in scenes])
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["peak"]
            optimizer.zero_grad()
        loss, correct = lesson_loss(self.model, self.decoder, batch, pixels, self.device)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        p.step += 1
        return loss.item(), correct

    def _remember(self, correct: dict[str, Tensor]) -> None:
        memory, accuracy = self.recipe.memory, self.progress.accuracy
        for kind, hits in correct.items():
            now = hits.float().mean().item()
            accuracy[kind] = memory * accuracy.get(kind, now) + (1 - memory) * now

    def _advance(self, log: Log) -> None:
        p = self.progress
        stage = STAGES[p.stage]
        worst = min(p.accuracy.get(kind, 0.0) for kind in stage.kinds)
        if worst >= stage.mastered and p.step - p.stage_began >= stage.at_least:
            p.stage, p.stage_began = p.stage + 1, p.step
            self._save_weights(f"after-stage-{p.stage - 1}.safetensors")  # to go on from it again
            self._fit_depth(stage.depth)
            log(f"step {p.step}: mastered {stage.name!r}, next {STAGES[p.stage].name!r}")

    def _line(self, loss: float, rate: float) -> str:
        p = self.progress
        kinds = " ".join(f"{k} {v:.2f}" for k, v in sorted(p.accuracy.items()))
        where = f"{self.name} step {p.step} {p.seconds:.0f}s stage {p.stage}"
        return f"{where} rate {rate:.2f} loss {loss:.3f} | {kinds}"

    def _save(self) -> None:
        self._save_weights("checkpoint.safetensors")
        optimizers = [o.state_dict() for o in self.optimizers]
        _replace(self.folder / "optimizer.pt", lambda path: torch.save(optimizers, path))
        record = {"recipe": asdict(self.recipe), "progress": asdict(self.progress)}
        text = json.dumps(record, indent=1)
        _replace(self.folder / "progress.json", lambda path: path.write_text(text))

    def _save_weights(self, name: str) -> None:
        state = {k: v.detach().cpu().contiguous() for k, v in self.model.state_dict().items()}
        _replace(self.folder / name, lambda path: save_file(state, path))

    def _resume(self) -> bool:
        record_file = self.folder / "progress.json"
        if not record_file.exists():
            return False
        record = json.loads(record_file.read_text())
        if record["recipe"] != asdict(self.recipe):
            raise ValueError(
                f"{record_file} was trained by another recipe: {record['recipe']}; "
                "choose another --runs folder, or the same recipe"
            )
        self.progress = Progress(**record["progress"])
        self._fit_depth("full")
        self.model.load_state_dict(load_file(self.folder / "checkpoint.safetensors"))
        states = torch.load(self.folder / "optimizer.pt", weights_only=True)
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(state)
        return True


def read_progress(folder: Path) -> tuple[dict, dict]:
    """The recipe and the progress of the run in a folder."""
    record = json.loads((folder / "progress.json").read_text())
    return record["recipe"], record["progress"]


def _fresh_scenes(rng: random.Random, count: int) -> list[Scene]:
    seeds = scene_seeds("backbone", rng.getrandbits(40))
    return [make_scene(next(seeds)) for _ in range(count)]


def _take_language(model: Backbone, folder: Path) -> None:
    """Start from another backbone's language model, as LLaVA and MiniGPT-4 share Vicuna."""
    from transformers import AutoModelForImageTextToText

    donor: Any = AutoModelForImageTextToText.from_pretrained(folder)
    language_model(model).load_state_dict(language_model(donor).state_dict())
    output_embedding(model).load_state_dict(output_embedding(donor).state_dict())


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    write(temporary)
    temporary.replace(path)
