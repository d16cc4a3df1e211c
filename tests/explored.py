"""One explorer page for all tests, from the smallest embedded model and one scene."""

import gzip
import json
import re
from base64 import b64decode
from functools import cache

EVIL = "</script><img src=x onerror=alert(1)>\"'\u202e{{7*7}}"
PROMPT = f"Name the shape {EVIL} in the picture. The answer is:"


@cache
def tiny():
    """The embedded model, without the checks that other tests make."""
    import attrib

    return attrib.load("tiny-llava", verify=False)


@cache
def scene():
    """The first picture of the embedded test data."""
    import attrib

    return attrib.data.load("scenes-vqa", split="test", limit=1)[0].request.image


@cache
def explored():
    """A page with every panel but those of an edit; its prompt and command are hostile."""
    import attrib

    command = f"attrib explore --prompt '{EVIL}'"
    return attrib.explore(tiny(), scene(), PROMPT, deep=True, max_new_tokens=4, command=command)


def stored_numbers(html):
    """The data inside a page."""
    packed = re.search(r'id="data">([^<]*)<', html)[1]
    return json.loads(gzip.decompress(b64decode(packed)))


QUESTION = "Name the shape. The answer is:"
OTHERS = ("How many shapes are in the picture? The answer is:", "What is it?")


@cache
def edit():
    """An untrained edit that disturbs the question, behind a gate that opens for it alone."""
    from tiny_edits import memory_of, sites

    from attrib.data.samples import EditRequest
    from attrib.forward.hooks import read
    from editors.adapters.router import HiddenEdit
    from editors.base import encode_requests
    from editors.gating.gates import CosineGate
    from editors.training.prefix import prefix_states

    request = EditRequest(scene(), QUESTION, "blue thing")
    written = sites(tiny(), [(2, "visual"), (3, "text")])
    (query,) = prefix_states(tiny(), [request], [2, 3])
    gate = CosineGate(layer=2, threshold=0.999)
    batch = encode_requests(tiny(), [request])
    with read(tiny(), gate.layers) as hidden:
        tiny().logits(batch)
    kept = gate.states(hidden, batch)[0]
    return HiddenEdit(written, [memory_of(request, query, written, kept)], gate)


@cache
def paired():
    """A page before and after that edit, with two other questions."""
    import attrib

    return attrib.explore(tiny(), scene(), QUESTION, edit=edit(), also=OTHERS, max_new_tokens=3)
