"""`attrib demo`: a first report on an embedded, trained model. No network, no GPU, no account."""

import shlex
import time
from pathlib import Path

from attrib.cli.outputs import log, write_manifest, write_quarantined
from attrib.pipeline.options import ModelOptions, option
from attrib.pipeline.source import load_model
from attrib.vocabulary import SceneData, SceneSplit


class DemoOptions(ModelOptions):
    """Options of the first report."""

    data: SceneData = option("scenes-vqa", "Embedded data.")
    split: SceneSplit = option("test", "Part of it.")
    limit: int = option(64, "Number of samples.", ge=1)
    batch_size: int = option(16, "Samples per pass.", ge=1)
    seed: int = option(0, "Seed of the bootstrap intervals.")
    out: Path = option(Path("demo"), "Folder of the report.")


def demo(options: DemoOptions) -> int:
    """First report on an embedded model; needs no network, GPU or account."""
    start = time.monotonic()
    from attrib.data import load as load_data
    from attrib.report import study, write_page
    from attrib.report.summaries import summarize_demo

    log(f"demo: {options.model} on {options.limit} samples of {options.data} {options.split}")
    data = load_data(options.data, options.split, limit=options.limit)
    vlm = load_model(options)
    chosen = options.model_dump(mode="json")
    made = study(
        vlm, data, batch_size=options.batch_size, seed=options.seed, options=chosen,
        commands=_commands(options),
    )  # fmt: skip
    page = write_page(made, options.out / "report.html")
    for name, result in made.results.items():
        result.save(options.out / f"{name}.parquet")
    write_manifest(options.out, "demo", made.provenance)
    write_quarantined(options.out, made.quarantined)
    print(summarize_demo(made.results["contributions"], made.results["wrong_key"]))
    print(f"{page} (written in {time.monotonic() - start:.0f} s; open it in a browser)")
    return 0


def _commands(options: DemoOptions) -> list[str]:
    on = ["--model", options.model, "--data", options.data, "--split", options.split]
    on += ["--limit", str(options.limit), "--seed", str(options.seed)]
    for name in ("revision", "dtype", "device", "device_map"):
        value = getattr(options, name)
        if value != type(options).model_fields[name].default:
            on += [f"--{name.replace('_', '-')}", value]
    on += ["--trust-remote-code"] if options.trust_remote_code else []
    return [
        shlex.join(["attrib", "demo", *on]),
        shlex.join(["attrib", "contributions", *on]),
        shlex.join(["attrib", "contributions", *on, "--key", "wrong"]),
        shlex.join(["attrib", "attention", *on]),
    ]
