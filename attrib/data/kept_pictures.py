"""Pictures that were decoded a moment ago, within a bound of bytes.

The rows of an edit name the same picture several times, and a training looks at all of them before
it starts: each would be decoded anew. A picture that has changed since is decoded again, by its
time and size; one that was written just now is not kept, since its time may not show a change.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from PIL import Image

LIMIT = 1 << 26  # bytes of all that are kept
CHANNELS = 3
SETTLED = 2_000_000_000  # nanoseconds after which a later change has another time


@dataclass(eq=False)
class KeptPictures:
    """RGB pictures by key; those that were not used for the longest are dropped.

    Attributes:
        limit: Bytes of all that are kept.
        num_bytes: Bytes of those that are kept now.
    """

    limit: int = LIMIT
    num_bytes: int = 0
    _kept: OrderedDict[Hashable, Image.Image] = field(default_factory=OrderedDict, repr=False)
    _lock: Lock = field(default_factory=Lock, repr=False)

    def get(self, key: Hashable, make: Callable[[], Image.Image]) -> Image.Image:
        """A copy of the picture of a key, which is made if it is not kept."""
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
        if found is None:
            found = make()
            self._keep(key, found)
        return found.copy()

    def of_file(self, path: Path, kind: Hashable, make: Callable[[], Image.Image]) -> Image.Image:
        """A copy of the picture in a file as it is now; `kind` is how it is opened."""
        try:
            now = path.stat()
        except (OSError, ValueError):
            return make()  # which says what is wrong
        if time.time_ns() - now.st_mtime_ns < SETTLED:
            return make()
        key = (str(path), now.st_ino, now.st_mtime_ns, now.st_ctime_ns, now.st_size, kind)
        return self.get(key, make)

    def _keep(self, key: Hashable, picture: Image.Image) -> None:
        with self._lock:
            if key in self._kept or _size(picture) > self.limit:
                return
            self._kept[key] = picture
            self.num_bytes += _size(picture)
            while self.num_bytes > self.limit:
                self.num_bytes -= _size(self._kept.popitem(last=False)[1])


def _size(picture: Image.Image) -> int:
    return picture.width * picture.height * CHANNELS


KEPT = KeptPictures()
