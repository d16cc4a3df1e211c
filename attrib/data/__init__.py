"""Edit data: requests, samples, and loading them by name."""

from attrib.data.images import BadImage, open_photo
from attrib.data.loading import load
from attrib.data.samples import EditData, EditRequest, EditSample, Quarantined
from attrib.data.scenes import sample_image

__all__ = [
    "BadImage",
    "EditData",
    "EditRequest",
    "EditSample",
    "Quarantined",
    "load",
    "open_photo",
    "sample_image",
]
