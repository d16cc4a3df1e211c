"""Edit data: requests, samples, and where they come from."""

from attrib.data.easyedit import load
from attrib.data.images import BadImage, open_photo
from attrib.data.samples import EditData, EditRequest, EditSample, Quarantined

__all__ = [
    "BadImage",
    "EditData",
    "EditRequest",
    "EditSample",
    "Quarantined",
    "load",
    "open_photo",
]
