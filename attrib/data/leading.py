"""The first words of an answer given with the question: for captions, which all begin alike.

Analyses look at the token behind the prompt. Of a caption that is an article, and says nothing of
the picture; the word behind it does.
"""

from dataclasses import replace

from attrib.data.samples import EditData, EditRequest, EditSample, Quarantined


def lead(data: EditData, words: int) -> EditData:
    """The same samples, the first `words` words of each request's target behind its prompt.

    Samples whose target is not longer than that are set aside.
    """
    if not words:
        return data
    samples, short = [], []
    for row, sample in enumerate(data.samples):
        if len(sample.request.target.split()) > words:
            samples.append(_led(sample, words))
        else:
            why = f"the answer {sample.request.target!r} has no word behind the first {words}"
            place = (sample.meta.get("file", data.name), sample.meta.get("row", row))
            short.append(Quarantined(*place, "target", why))
    provenance = {**data.provenance, "lead": words}
    return EditData(data.name, data.split, samples, [*data.quarantined, *short], provenance)


def _led(sample: EditSample, words: int) -> EditSample:
    request = sample.request
    parts = request.target.split(maxsplit=words)
    prompt = " ".join([request.prompt, *parts[:words]])
    return replace(sample, request=EditRequest(request.source, prompt, parts[words]))
