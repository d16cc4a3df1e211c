"""The model and the samples that options name, with the first words of answers in the prompt."""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrib.data import EditData, EditRequest, EditSample, Quarantined, load
from attrib.errors import AttribError, SetupError
from attrib.files import sha256
from attrib.pipeline.options import (
    NAMED_SPLITS,
    AnalysisOptions,
    ModelOptions,
    Options,
    SourceOptions,
)

if TYPE_CHECKING:
    from attrib.model.batch import Batch
    from attrib.model.vlm import VLM

MIN_ANSWERS = 10  # fewer do not show what answers share


class ModelLoader:
    """Loads the models that options name and keeps the last one, for commands of several steps."""

    def __init__(self):
        self._last: tuple[dict[str, Any], VLM] | None = None

    def __call__(self, options: ModelOptions, device: str | None = None) -> "VLM":
        """The model, loaded unless it is the last one; on `device`, by default that of options."""
        named = {name: getattr(options, name) for name in ModelOptions.model_fields}
        named["device"] = device or options.device
        if self._last is None or self._last[0] != named:
            self._last = None  # freed before the next one is loaded: two models may not fit
            self._last = named, load_model(ModelOptions(**named))
        return self._last[1]


def load_model(options: ModelOptions) -> "VLM":
    """The model that the options name; without a progress bar unless on a terminal."""
    from transformers.utils.logging import disable_progress_bar

    from attrib.loading import load as load_vlm

    if not sys.stderr.isatty():
        disable_progress_bar()
    named = options.model_dump(include=set(ModelOptions.model_fields))
    return load_vlm(named.pop("model"), **named)


def load_samples(options: AnalysisOptions) -> EditData:
    """The samples that the options name: a dataset, or one prompt with its photos.

    The first words of the answers are moved behind the prompts as `answer_prefix` says.

    Raises:
        AttribError: The data cannot be read.
    """
    if options.prompt is None:
        data = read_data(options)
        return add_answer_prefix(data, prefix_length(options, data))
    request = EditRequest(options.image, options.prompt, options.target or "")
    sample = EditSample("photo", request, meta={"row": 0})
    provenance = {"file": "command line", **file_digests(options)}
    return EditData("typed by hand", "", [sample], provenance=provenance)


def read_data(options: AnalysisOptions) -> EditData:
    """The samples of a dataset as they are, without answer words behind the prompts."""
    split = options.split or NAMED_SPLITS.get(options.data)
    # Options of commands that read edits with everything they are judged by.
    more = {
        "style": getattr(options, "style", None),
        "disjoint": getattr(options, "disjoint", False),
    }
    return load(options.data, split, **reading(options), **more)


def reading(options: SourceOptions) -> dict[str, Any]:
    """How the rows are read, as keyword arguments of `attrib.data.load`."""
    return {name: getattr(options, name) for name in SourceOptions.model_fields}


def require_targets(data: EditData) -> EditData:
    """Data whose rows have the answers that edits install.

    Raises:
        AttribError: None has one: a user's table without such a column.
    """
    if len(data) and not any(sample.request.target for sample in data):
        raise AttribError(
            f"{data.name} has no column for the target, the answer that an edit installs; name it "
            "as --columns target=COLUMN"
        )
    return data


def data_flags(options: Any, split: str | None = None) -> list[str]:
    """The data of a command as flags of a next one, with another split."""
    given = {"data": options.data, "split": split, "image-root": options.image_root}
    given |= {"columns": options.columns}
    pairs = [(f"--{name}", str(value)) for name, value in given.items() if value is not None]
    return [part for pair in pairs for part in pair]


def prefix_length(options: AnalysisOptions, data: EditData | None = None) -> int:
    """How many words of each answer are fed: as asked, or those that most answers share.

    None in a chat template, where they would end up in the user's turn.

    Raises:
        AttribError: Words are asked for in a chat template.
    """
    if options.template != "raw":
        if options.answer_prefix:
            raise AttribError(
                "--answer-prefix: its words go behind the prompt, which a chat template closes; "
                "give --template raw, or --answer-token N for a later token"
            )
        return 0
    if options.answer_prefix is not None:
        return options.answer_prefix
    return shared_prefix_length(read_data(options) if data is None else data)


def shared_prefix_length(samples: Iterable[EditSample]) -> int:
    """Length, in words, of the prefix that more than half of the answers share.

    An answer that ends with the prefix does not count as sharing it: its last word is its content.
    """
    answers = [sample.request.target.split() for sample in samples]
    if len(answers) < MIN_ANSWERS:
        return 0
    length, sharing = 0, answers
    while True:
        next_words = Counter(answer[length] for answer in sharing if len(answer) > length + 1)
        word, count = next_words.most_common(1)[0] if next_words else ("", 0)
        if 2 * count <= len(answers):
            return length
        sharing = [answer for answer in sharing if answer[length : length + 1] == [word]]
        length += 1


def add_answer_prefix(data: EditData, words: int) -> EditData:
    """Move the first `words` words of each request's target to the end of its prompt.

    Analyses read the token after the prompt. The first word of a caption is an article, which does
    not depend on the image; the word after it does.

    Samples whose target has no more words than that are quarantined.
    """
    if not words:
        return data
    samples, short = [], []
    for row, sample in enumerate(data.samples):
        request = sample.request
        *prefix, rest = request.target.split(maxsplit=words) or [""]
        if len(prefix) == words:
            prompt = " ".join([request.prompt.rstrip(" "), *prefix])
            samples.append(replace(sample, request=EditRequest(request.source, prompt, rest)))
        else:
            why = f"the answer {request.target!r} has no word after the first {words}"
            place = (sample.meta.get("file", data.name), sample.meta.get("row", row))
            short.append(Quarantined(*place, "target", why))
    provenance = {**data.provenance, "answer_prefix": words}
    return EditData(data.name, data.split, samples, [*data.quarantined, *short], provenance)


def first_batch(vlm: "VLM", data: "EditData", size: int, *, visual: bool) -> "Batch":
    """The first samples that can be encoded; only those with an image if `visual`.

    Raises:
        SetupError: No sample can be.
    """
    images, prompts = [], []
    for sample in data:
        try:
            image = sample.request.image
            if image is not None or not visual:
                vlm.encode([image], [sample.request.prompt])
                images.append(image)
                prompts.append(sample.request.prompt)
        except AttribError:
            continue  # the run quarantines it
        if len(prompts) == size:
            break
    if not prompts:
        raise SetupError("no sample of the data can be used; run without --dry-run for the reasons")
    return vlm.encode(images, prompts)


def as_data(samples: Sequence[EditSample]) -> EditData:
    """Samples as a dataset; a plain list is identified by a digest of its texts and images."""
    if isinstance(samples, EditData):
        return samples
    digest = hashlib.sha256()
    for sample in samples:
        for request in sample.requests:
            digest.update(json.dumps([sample.id, request.prompt, request.target]).encode())
            digest.update(_pixels(request))
    return EditData("samples", "", list(samples), provenance={"sha256": digest.hexdigest()})


def _pixels(request: EditRequest) -> bytes:
    """Size and pixels of a request's images; b"" without one, or if one cannot be opened."""
    with suppress(AttribError):  # the run quarantines the row
        return b"".join(repr(one.size).encode() + one.tobytes() for one in request.images)
    return b""


def describe_source(options: AnalysisOptions) -> str:
    """The dataset and split, or the prompt and photo, for messages."""
    if options.prompt is None:
        return f"{options.data} {options.split or ''}".strip()
    images = " and ".join(map(str, options.image or ()))
    return f"{options.prompt!r}" + (f" about {images}" if images else "")


def file_digests(options: Options) -> dict[str, str]:
    """SHA-256 of each file that an option names, such as a photo, by the option's name."""
    given: dict[str, Any] = {}
    for name, value in options:
        several = value if isinstance(value, list) and len(value) > 1 else []
        one = value[0] if isinstance(value, list) and len(value) == 1 else value
        given |= {f"{name}[{i}]": path for i, path in enumerate(several)} or {name: one}
    files = {name: p for name, p in given.items() if isinstance(p, Path) and p.is_file()}
    return {f"{name}_sha256": sha256(path) for name, path in files.items() if name != "out"}
