"""The first words of an answer given with the question: for captions, which all begin alike.

Analyses look at the token behind the prompt. Of a caption that is an article, and says nothing of
the picture; the word behind it does.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from attrib.data.samples import EditData, EditRequest, EditSample, Quarantined

FEWEST = 10  # answers by which it is judged what they share


def shared_prefix_length(samples: Iterable[EditSample]) -> int:
    """How many words answers begin with that are no news: those that more than half of them share.

    An answer that ends there is not among those that share a word: that word is the news in it.
    """
    answers = [sample.request.target.split() for sample in samples]
    if len(answers) < FEWEST:
        return 0
    words, alike = 0, answers
    while True:
        next_words = Counter(answer[words] for answer in alike if len(answer) > words + 1)
        word, count = next_words.most_common(1)[0] if next_words else ("", 0)
        if 2 * count <= len(answers):
            return words
        alike = [answer for answer in alike if answer[words : words + 1] == [word]]
        words += 1


def add_answer_prefix(data: EditData, words: int) -> EditData:
    """The same samples, the first `words` words of each request's target behind its prompt.

    Samples whose target is not longer than that are set aside.
    """
    if not words:
        return data
    samples, short = [], []
    for row, sample in enumerate(data.samples):
        if len(sample.request.target.split()) > words:
            samples.append(_with_prefix(sample, words))
        else:
            why = f"the answer {sample.request.target!r} has no word behind the first {words}"
            place = (sample.meta.get("file", data.name), sample.meta.get("row", row))
            short.append(Quarantined(*place, "target", why))
    provenance = {**data.provenance, "answer_prefix": words}
    return EditData(data.name, data.split, samples, [*data.quarantined, *short], provenance)


def _with_prefix(sample: EditSample, words: int) -> EditSample:
    request = sample.request
    parts = request.target.split(maxsplit=words)
    prompt = " ".join([request.prompt, *parts[:words]])
    return replace(sample, request=EditRequest(request.source, prompt, parts[words]))
