"""Options that `attrib train` and `attrib evaluate` share."""

from attrib.pipeline.options import Options, option


class BenchmarkOptions(Options):
    """How the edits of a benchmark are read."""

    style: str | None = option(
        None,
        "Prompt style: visedit, bare, short-answer, comprehendedit.",
        panel="Data",
        shown="the benchmark's",
    )
    disjoint: bool = option(
        False,
        "Leave out the M-Loc questions that another split of the benchmark has too: of what is "
        "trained on, a gate included, or else of what is scored.",
        panel="Data",
        flags=("--disjoint",),
    )
