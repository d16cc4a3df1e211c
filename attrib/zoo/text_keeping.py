"""The second training of smol-llava: it restores text answers that the first one changed.

1. SmolLM2 answers everyday questions (`text_questions`) and questions that it samples itself.
2. The additions are projected off these texts (`text_projection`).
3. Packed questions about scenes train the projected additions on, while the distributions at every
   token of SmolLM2's questions and answers are drawn to its own (Kullback-Leibler divergence).

No question is one of the common facts by which the card scores what is kept.
"""

import json
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from attrib.files import write_text
from attrib.zoo.adaptation import AdaptationRun, Log
from attrib.zoo.adaptation_data import Adaptation, StepData
from attrib.zoo.curriculum import CurriculumSampler
from attrib.zoo.packing import Packed, packed_loss
from attrib.zoo.smol_llava import CHAT, ReplayTexts, trained_weights, use_additions
from attrib.zoo.text_projection import Moments, input_moments, project_additions
from attrib.zoo.text_questions import trained_questions

TURN, REPLY = "<|im_end|>", "\n<|im_start|>assistant\n"
OPENINGS = ("What", "Who", "Where", "Which", "When", "How", "Why", "Can you", "Is", "Tell me")
_AT_ONCE = 64


@dataclass(frozen=True)
class TextKeeping(Adaptation):
    """How the second training goes; see `Adaptation`.

    Attributes:
        projection: The weight lam of texts in the projection.
        sampled: Number of questions that the language model samples itself.
        question_tokens: Of each of them at most.
        answer_tokens: Of each answer at most.
        moment_steps: Number of steps whose rows give the second moments.
    """

    seed: int = 1
    steps: int = 140
    easy_steps: int = 0
    rows: int = 4
    texts_per_row: int = 4
    replay: float = 20.0
    learning_rate: float = 2e-4
    warmup: int = 10
    projection: float = 3.0
    sampled: int = 300
    question_tokens: int = 24
    answer_tokens: int = 40
    moment_steps: int = 8


class TextKeepingRun(AdaptationRun):
    """The second training, in a folder of its own.

    Args:
        folder: Of `checkpoint.pt` and `progress.json`.
        recipe: How it goes.
        language: Folder of SmolLM2.
        additions: File of what the first training made.
        device: Where to train.
        workers: Processes that make data.
    """

    def __init__(
        self,
        folder: Path,
        recipe: TextKeeping,
        language: Path,
        additions: Path,
        device: str,
        workers: int = 0,
    ):
        super().__init__(folder, recipe, language, device, workers)
        self.keeping = recipe
        with safe_open(additions, "pt") as file:
            self.before = json.loads(file.metadata()["facts"])
        trained = trained_weights(self.model)
        with torch.no_grad():
            for name, value in load_file(additions).items():
                trained[name].copy_(value)

    def _prepare(self, log: Log) -> ReplayTexts:
        self.model.eval()
        use_additions(self.model, False)
        texts = self._answered_texts()
        log(f"{len(texts.ids)} questions answered by the language model")
        text = self._moments(texts, of_text=True)
        use_additions(self.model, True)
        scene = self._moments(texts, of_text=False)
        project_additions(self.model, scene, text, self.keeping.projection)
        self.optimizer = self._optimizer()  # of the parametrized weights
        return texts

    def _begin(self, log: Log) -> None:
        """Nothing precedes the first step."""

    def _record(self) -> dict[str, Any]:
        return {**super()._record(), "before": self.before}

    def _answered_texts(self) -> ReplayTexts:
        """Questions with answers; kept in a file, since they take minutes to generate."""
        file = self.folder / f"texts-{self._digest()}.json"
        texts = json.loads(file.read_text()) if file.exists() else self._answer()
        write_text(file, json.dumps(texts))
        return ReplayTexts(texts, self._hidden(texts))

    def _digest(self) -> str:
        """What the texts depend on, as part of a file's name."""
        r = self.keeping
        asked = [q.text for q in trained_questions()]
        made = [r.seed, r.sampled, r.question_tokens, r.answer_tokens, OPENINGS, asked]
        return sha256(json.dumps(made).encode()).hexdigest()[:12]

    def _answer(self) -> list[list[int]]:
        r, tokenizer = self.keeping, self.processor.tokenizer
        torch.manual_seed(r.seed)
        sampled = [q for opening in OPENINGS for q in self._sampled(opening)]
        asked = [f"{CHAT}{q.text}?" for q in trained_questions()] + sampled
        texts: list[list[int]] = []
        for start in range(0, len(asked), _AT_ONCE):
            prompts = [q + TURN + REPLY for q in asked[start : start + _AT_ONCE]]
            texts += self._generate(prompts, r.answer_tokens, tokenizer.eos_token_id)
        return texts

    def _sampled(self, opening: str) -> list[str]:
        count = -(-self.keeping.sampled // len(OPENINGS))
        stop = self.processor.tokenizer.convert_tokens_to_ids(TURN)
        ids = self._generate(
            [CHAT + opening] * count, self.keeping.question_tokens, stop, do_sample=True, top_p=0.95
        )
        decode = self.processor.tokenizer.decode
        texts = [decode(row, skip_special_tokens=False) for row in ids]
        questions = [CHAT + text.partition(CHAT)[2].partition(TURN)[0] for text in texts]
        return list(dict.fromkeys(questions))

    @torch.no_grad()
    def _generate(self, prompts: list[str], most: int, stop: int, **how: Any) -> list[list[int]]:
        """Token ids of prompts with what follows, up to and with the stop token."""
        tokenizer, model = self.processor.tokenizer, cast(Any, self.model)
        given = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
        given = given.to(self.device)
        width = given.input_ids.shape[1]
        ids = model.generate(
            input_ids=given.input_ids,
            attention_mask=given.attention_mask,
            max_new_tokens=most,
            suppress_tokens=[self.model.config.image_token_id],
            eos_token_id=stop,
            pad_token_id=tokenizer.pad_token_id,
            **({"do_sample": False} | how),
        )
        found = []
        for row, mask in zip(ids.tolist(), given.attention_mask.tolist(), strict=True):
            new = row[width:]
            new = new[: new.index(stop) + 1] if stop in new else new
            found.append(row[width - sum(mask) : width] + new)
        return found

    @torch.no_grad()
    def _hidden(self, texts: list[list[int]]) -> Tensor:
        """Last hidden states of the language model as it is now, padded with zeros."""
        words, parts = self.model.get_input_embeddings(), []
        for ids in texts:
            row = torch.tensor([ids], device=self.device)
            parts.append(self.decoder(inputs_embeds=words(row)).last_hidden_state[0])
        return nn.utils.rnn.pad_sequence(parts, batch_first=True).to(torch.bfloat16)

    def _moments(self, texts: ReplayTexts, of_text: bool) -> Moments:
        """Second moments at the texts of some steps' rows or at everything else, summed over steps.

        Those of a step are means over its positions. The projection is the same for sums as for
        means over steps: a common factor of both of its moments cancels.
        """
        sampler = CurriculumSampler.of(self.model, self.processor)
        data = StepData(self.recipe, sampler, self.processor.tokenizer.pad_token_id, texts.ids)
        total: Moments = {}
        for step in range(self.keeping.moment_steps):
            packed, pixels = data[step]
            is_text = packed.replayed[..., 0] >= 0
            at = is_text if of_text else (packed.owner >= 0) & ~is_text
            run = lambda p=packed, x=pixels: self._forward(p, x)  # noqa: E731
            for name, found in input_moments(self.model, at.to(self.device), run).items():
                total[name] = total.get(name, torch.zeros_like(found)) + found
        return total

    def _forward(self, packed: Packed, pixels: Tensor) -> None:
        packed_loss(self.model, self.decoder, packed, pixels, self.kind, torch.float32)
