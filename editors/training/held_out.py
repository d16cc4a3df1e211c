"""Which edits a training is validated on."""

from collections.abc import Sequence

from attrib.data.samples import EditSample
from attrib.errors import AttribError

SHARE = 0.05  # of the training samples, where no validation samples are given
AT_MOST = 100


def held_out(
    samples: Sequence[EditSample], validation: Sequence[EditSample] | None
) -> tuple[list[EditSample], list[EditSample]]:
    """Samples to train on and to validate on: the last 5 %, at most 100, where none are given.

    Raises:
        AttribError: A sample is to be trained on and to be validated on.
    """
    if validation is not None:
        trained = {sample.id for sample in samples}
        if both := [sample.id for sample in validation if sample.id in trained]:
            raise AttribError(
                f"validation: {both[0]!r} is trained on as well; give samples of another part, or "
                "none, and the last ones are kept apart"
            )
        return list(samples), list(validation)
    num = min(AT_MOST, max(1, round(SHARE * len(samples))))
    return list(samples)[:-num], list(samples)[-num:]
