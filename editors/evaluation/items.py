"""What scores are about: samples that share it are not independent."""

import hashlib
import json

from attrib.data.samples import EditSample

DIGEST = 16  # characters


def item_of(sample: EditSample, metric: str) -> str:
    """What a score is about, as a digest: samples with one item are not independent.

    Data files ask about one image several times, and repeat their facts. The item of T-Loc, and of
    the average, of which it is a part, is the fact; that of M-Loc its image; that of all other
    scores the edit's image.
    """
    asked = {"t_loc": sample.text_locality, "m_loc": sample.visual_locality}
    if metric == "avg" and sample.text_locality:
        metric = "t_loc"
    digest = hashlib.sha256()
    for request in asked.get(metric, [sample.request]):
        images = request.images
        for image in images:
            digest.update(repr(image.size).encode() + image.tobytes())
        if not images:
            digest.update(json.dumps([request.prompt, request.target]).encode())
    return digest.hexdigest()[:DIGEST]
