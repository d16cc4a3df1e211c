"""Which edits a training is validated on."""

from collections.abc import Sequence

from attrib.data.samples import EditSample

SHARE = 0.05  # of the training samples, where no validation samples are given
AT_MOST = 100


def held_out(
    samples: Sequence[EditSample], validation: Sequence[EditSample] | None
) -> tuple[list[EditSample], list[EditSample]]:
    """Samples to train on and to validate on: the last 5 %, at most 100, where none are given."""
    if validation is not None:
        return list(samples), list(validation)
    num = min(AT_MOST, max(1, round(SHARE * len(samples))))
    return list(samples)[:-num], list(samples)[-num:]
