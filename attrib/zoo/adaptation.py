"""Training of smol-llava: seeded and resumable; the language model keeps its weights.

1. The projector, and the tower, which knows the scenes already, are aligned to the word embeddings
   of what each visual token shows (`vision_pretraining`).
2. Packed questions, captions and facts about scenes (`curriculum`) train tower, projector and
   low-rank additions. Texts that the plain model wrote keep its text answers.

Every step draws its data from (seed, step), so a resumed run equals an uninterrupted one, except
for the last bits of a GPU's sums.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from attrib.files import ADDITIONS, atomic_write, write_text
from attrib.zoo.adaptation_data import Adaptation, StepData
from attrib.zoo.curriculum import CurriculumSampler
from attrib.zoo.packing import Packed, packed_loss
from attrib.zoo.smol_llava import (
    ReplayTexts,
    build_smol_llava,
    freeze_language_model,
    replay_loss,
    sample_texts,
    save_additions,
    trained_weights,
    use_additions,
)
from attrib.zoo.vision_pretraining import pretrain_vision

Log = Callable[[str], object]
CHECKPOINT, PROGRESS = "checkpoint.pt", "progress.json"


class AdaptationRun:
    """One training run in a folder: `checkpoint.pt`, and its record again in `progress.json`."""

    def __init__(
        self, folder: Path, recipe: Adaptation, language: Path, device: str, workers: int = 0
    ):
        self.folder, self.recipe, self.device, self.workers = folder, recipe, device, workers
        self.kind = torch.device(device).type
        self.model, self.processor = build_smol_llava(language, recipe.seed)
        self.model.to(device)  # pyright: ignore[reportArgumentType]
        parts: Any = self.model.model
        self.decoder: Any = parts.language_model
        self.step, self.seconds, self.accuracy = 0, 0.0, dict[str, float]()
        freeze_language_model(self.model)
        self.optimizer = self._optimizer()

    def train(self, log: Log = print, save_every: int = 250, log_every: int = 25) -> None:
        """Train to the end, from the last checkpoint if there is one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        texts = self._prepare(log)
        log(f"{len(texts.ids)} texts sampled")
        if not self._resume():
            self._begin(log)
        self.model.train()
        self.seconds += time.monotonic() - began
        for packed, pixels in self._data(texts):
            began = time.monotonic()
            losses = self._train_step(packed, pixels, texts)
            self.seconds += time.monotonic() - began
            if self.step % log_every == 0:
                log(self._line(losses))
            if self.step % save_every == 0:
                self._save()
        self._save()

    def export(self, folder: Path) -> None:
        """Write what `attrib.load` reads beside SmolLM2: config and additions."""
        save_additions(self.model, folder / ADDITIONS, self._record())
        self.model.config.save_pretrained(folder)

    def _optimizer(self) -> torch.optim.Optimizer:
        trained = trained_weights(self.model)
        tower = [weight for name, weight in trained.items() if "vision_tower" in name]
        rest = [weight for name, weight in trained.items() if "vision_tower" not in name]
        peak = self.recipe.learning_rate
        groups = [{"params": rest, "peak": peak}, {"params": tower, "peak": peak / 4}]
        return torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)

    def _prepare(self, log: Log) -> ReplayTexts:  # noqa: ARG002 - of other runs
        """What training and a resumed training need alike: the texts to replay."""
        r = self.recipe
        use_additions(self.model, False)
        self.model.eval()
        asked = self.model, self.decoder, self.processor.tokenizer
        with torch.autocast(self.kind, torch.bfloat16):
            texts = sample_texts(*asked, r.texts, r.text_length, r.seed)
        use_additions(self.model, True)
        return texts

    def _begin(self, log: Log) -> None:
        """What precedes the first step: the alignment to word embeddings."""
        words: Any = self.model.get_input_embeddings()
        norm = words.weight.detach().float().norm(dim=-1).mean().item()
        r, asked = self.recipe, (self.model, self.processor.tokenizer)
        for scores in pretrain_vision(*asked, r.align_steps, r.seed, self.device, norm):
            log("vision " + " ".join(f"{k} {v:.3f}" for k, v in scores.items()))

    def _data(self, texts: ReplayTexts) -> Iterator[tuple[Packed, Tensor]]:
        sampler = CurriculumSampler.of(self.model, self.processor)
        pad = self.processor.tokenizer.pad_token_id
        data = StepData(self.recipe, sampler, pad, texts.ids)
        left = range(self.step, self.recipe.steps)
        ahead = {"prefetch_factor": 2, "persistent_workers": True} if self.workers else {}
        yield from DataLoader(
            data, batch_size=None, sampler=left, num_workers=self.workers, **ahead
        )

    def _train_step(self, packed: Packed, pixels: Tensor, texts: ReplayTexts) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate(self.step) * group["peak"]
        self.optimizer.zero_grad()
        states: list[Tensor] = []

        def decoder(**inputs: Any) -> Any:
            out = self.decoder(**inputs)
            states.append(out.last_hidden_state)
            return out

        dtype = getattr(torch, self.recipe.precision)
        loss, right = packed_loss(self.model, decoder, packed, pixels, self.kind, dtype)
        with torch.autocast(self.kind, dtype, enabled=dtype != torch.float32):
            head: Any = self.model.get_output_embeddings()
            kept = replay_loss(states[0], packed.replayed.to(self.device), texts, head)
        (loss + self.recipe.replay * kept).backward()
        norm = nn.utils.clip_grad_norm_(trained_weights(self.model).values(), 1.0)
        self.optimizer.step()
        self.step += 1
        for kind, hits in right.items():
            now = hits.float().mean().item()
            self.accuracy[kind] = 0.97 * self.accuracy.get(kind, now) + 0.03 * now
        return {"loss": loss.item(), "text": kept.item(), "gradient": float(norm)}

    def _line(self, losses: dict[str, float]) -> str:
        kinds = " ".join(f"{k} {v:.2f}" for k, v in sorted(self.accuracy.items()))
        numbers = " ".join(f"{k} {v:.4f}" for k, v in losses.items())
        return f"smol-llava step {self.step} {self.seconds:.0f}s {numbers} | {kinds}"

    def _save(self) -> None:
        record = json.dumps(self._record(), indent=1)
        # In one file: neither weights nor record can be there without the other.
        state = {
            "record": record,
            "weights": {k: v.detach().cpu() for k, v in trained_weights(self.model).items()},
            "optimizer": self.optimizer.state_dict(),
        }
        with atomic_write(self.folder / CHECKPOINT) as file:
            torch.save(state, file)
        write_text(self.folder / PROGRESS, record)

    def _record(self) -> dict[str, Any]:
        progress = {"step": self.step, "seconds": self.seconds, "accuracy": self.accuracy}
        return {"recipe": asdict(self.recipe), "progress": progress}

    def _resume(self) -> bool:
        state, record = read_checkpoint(self.folder)
        if not record:
            return False
        if record["recipe"] != asdict(self.recipe):
            raise ValueError(f"{self.folder} was trained by another recipe: {record['recipe']}")
        with torch.no_grad():
            for name, weight in trained_weights(self.model).items():
                weight.copy_(state["weights"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        progress = record["progress"]
        self.step, self.seconds = progress["step"], progress["seconds"]
        self.accuracy = progress["accuracy"]
        return True


def read_checkpoint(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The weights and optimizer of the last checkpoint, on the CPU, and its record.

    Both are empty where there is none, or where an earlier version was killed before it wrote the
    record of its first one: the run begins anew.

    Raises:
        ValueError: An earlier version was killed between a checkpoint and the record of it.
    """
    if not (folder / CHECKPOINT).exists():
        return {}, {}
    state = torch.load(folder / CHECKPOINT, map_location="cpu", weights_only=True)
    if "record" in state:
        return state, json.loads(state["record"])
    if not (folder / PROGRESS).exists():
        return {}, {}
    record = json.loads((folder / PROGRESS).read_text())
    taken = max((int(one["step"]) for one in state["optimizer"]["state"].values()), default=0)
    if taken != record["progress"]["step"]:
        raise ValueError(
            f"{folder}: {CHECKPOINT} is of step {taken}, and {PROGRESS}, which an earlier version "
            f"wrote after it, of step {record['progress']['step']}; set that to {taken} to resume"
        )
    return state, record
