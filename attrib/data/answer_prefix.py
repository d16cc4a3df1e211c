"""Move the first words of an answer into the prompt.

Analyses read the token after the prompt. The first word of a caption is an article, which does
not depend on the image; the word after it does.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from attrib.data.samples import EditData, EditRequest, EditSample, Quarantined

MIN_ANSWERS = 10  # fewer do not show what answers share


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

    Samples whose target has no more words than that are quarantined.
    """
    if not words:
        return data
    samples, short = [], []
    for row, sample in enumerate(data.samples):
        request = sample.request
        *prefix, rest = request.target.split(maxsplit=words) or [""]
        if len(prefix) == words:
            prompt = " ".join([request.prompt, *prefix])
            samples.append(replace(sample, request=EditRequest(request.source, prompt, rest)))
        else:
            why = f"the answer {request.target!r} has no word after the first {words}"
            place = (sample.meta.get("file", data.name), sample.meta.get("row", row))
            short.append(Quarantined(*place, "target", why))
    provenance = {**data.provenance, "answer_prefix": words}
    return EditData(data.name, data.split, samples, [*data.quarantined, *short], provenance)
