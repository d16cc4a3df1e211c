"""Architecture diagrams of editors: the data flow of an edited pass, one adapter, the loss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from figures.figure import Measured
from figures.frames import records
from figures.style import Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

Point = tuple[float | int, float | int]
TEXT_SIZE = 8.5
# The canvas runs from 0 to 100 in both directions. x of the token lanes, with their widths:
LANES = {"visual": (14.0, 17.0), "text": (34.0, 17.0), "last": (50.0, 10.0)}
MODEL_X, MODEL_WIDTH = 30.0, 54.0
GATE_X, EDIT_X = 69.0, 89.5
BOTTOM, TOP = 14.0, 93.0
RUN, SITE = 1.0, 1.7  # relative heights of a run of frozen layers and of a row of adapters
INPUT_OFFSET = 6.0  # where the edit and the gate enter an adapter, from its middle
STATES_X, SIGNAL_X = 30.0, 74.0  # columns inside an adapter

SIGNALS = {
    "embed": "input embeddings",
    "site": "states at this layer",
    "both": "input embeddings\nand states at this layer",
    "none": "nothing (zeros)",
}
SPANS = {"all": "of all its positions", "answer": "of its last prompt\ntoken and its target"}
GATE_INPUTS = {
    "prompt": "the prompt",
    "prompt_last": "last prompt",
    "sequence_last": "last target",
}
GATE_SCORES = {"learned": "log-odds", "cosine": "cosine"}
LOSS_TERMS = {
    "reliability": "new answer to the request",
    "generality": "new answer to rephrases, other pictures",
    "locality": "old answer to unrelated inputs",
    "hard": "old answer to near neighbours",
    "mapper_up": "mapper: high where the edit applies",
    "mapper_down": "mapper: low on unrelated images",
    "mapper_attribution": "mapper: like the attribution heatmap",
}


@dataclass(frozen=True)
class Canvas:
    """Axes for boxes and arrows, with colours by meaning."""

    ax: "Axes"
    colors: Mapping[str, str]

    def __post_init__(self) -> None:
        self.ax.set_axis_off()
        self.ax.set_xlim(0, 100)
        self.ax.set_ylim(-3, 100)

    def box(
        self, x: float, y: float, width: float, height: float, text: str, kind: str = "grid",
        *, fill: float = 0.18, size: float = TEXT_SIZE,
    ) -> None:  # fmt: skip
        """Draw a box around (x, y) with text; `fill` is the opacity of its colour."""
        left, low = x - width / 2, y - height / 2
        xs = [left, left + width, left + width, left, left]
        ys = [low, low, low + height, low + height, low]
        for color, alpha in (("white", 1.0), (self.colors[kind], fill)):
            self.ax.fill(xs[:4], ys[:4], color=color, alpha=alpha, zorder=2, linewidth=0)
        edge = self.colors["muted" if kind == "grid" else kind]
        self.ax.plot(xs, ys, color=edge, linewidth=1, zorder=3)
        self.text(x, y, text, size=size)

    def text(self, x: float, y: float, text: str, *, size: float = TEXT_SIZE, **look: Any) -> None:
        """Write text, centred on (x, y) by default."""
        look = {"ha": "center", "va": "center", "color": self.colors["ink"], **look}
        self.ax.text(x, y, text, fontsize=size, linespacing=1.25, zorder=4, **look)

    def arrow(
        self, *points: Point, kind: str = "muted", line: str = "-", head: bool = True
    ) -> None:
        """Draw a line through some points, with a head at the last one."""
        color = self.colors[kind]
        self.ax.plot(*zip(*points, strict=True), color=color, ls=line, linewidth=1.3, zorder=1.5)
        if head:
            tip = {"arrowstyle": "-|>", "color": color, "shrinkA": 0, "shrinkB": 0, "lw": 1.3}
            (x0, y0), (x1, y1) = points[-2:]
            near = (x1 - (x1 - x0) * 1e-3, y1 - (y1 - y0) * 1e-3)
            self.ax.annotate("", (x1, y1), xytext=near, arrowprops=tip, zorder=3)


def draw_editor(measured: Measured, style: Style) -> "Drawing":
    """Draw the data flow of an edited pass, and the inside of an adapter with its loss."""
    from attrib.plots.drawing import new_figure

    drawing = new_figure(11.4, 6.6)
    left, right = drawing.subplots(1, 2, width_ratios=(1.75, 1))
    left.set_title(f"(a) An edited pass of {measured.about['model']}")
    right.set_title("(b) Inside an adapter, and its training")
    _draw_pass(Canvas(left, style.colors), measured)
    _draw_adapter(Canvas(right, style.colors), measured)
    return drawing


def _draw_pass(canvas: Canvas, measured: Measured) -> None:
    about, sites = measured.about, records(measured.tables["sites"])
    runs, rows = _layout(sorted({site["layer"] for site in sites}), about["num_layers"])
    inputs = {"visual": f"image\n{about['visual_tokens']} visual tokens",
              "text": f"prompt\n{about['text_tokens'] - 1} text tokens",
              "last": "last prompt\ntoken"}  # fmt: skip
    for lane, (x, width) in LANES.items():
        canvas.box(x, 6, width, 9, inputs[lane])
        canvas.arrow((x, 10.5), (x, 99), head=False)
        canvas.arrow((x, 11), (x, 15))
        canvas.arrow((x, 92.5), (x, 94.5))
    for low, high, label in runs:
        canvas.box(MODEL_X, (low + high) / 2, MODEL_WIDTH, high - low, label)
    canvas.box(MODEL_X, 97, MODEL_WIDTH, 5, "answer")
    for site in sites:
        low, high = rows[site["layer"]]
        x, width = LANES[site["modality"]]
        mapper = "\nand its mapper" if site["mapper"] else ""
        label = (f"{site['modality']} adapter\nafter layer {site['layer']}{mapper}\n"
                 f"{site['parameters']:,} weights")  # fmt: skip
        canvas.box(x, (low + high) / 2, width, high - low - 9, label, site["modality"], fill=0.25)
        canvas.arrow((x + INPUT_OFFSET, high - 2), (x + INPUT_OFFSET, high - 4.5), kind="both")
        canvas.arrow((x + INPUT_OFFSET, low + 2), (x + INPUT_OFFSET, low + 4.5), kind="ink",
                     line="--")  # fmt: skip
    _draw_edit_and_gate(canvas, measured, rows)
    if not any(site["writes_last"] for site in sites):
        note = "Tokens are those of one sample. Adapters leave the last prompt token as it is."
        canvas.text(3, -1.5, note, size=7.5, ha="left", color=canvas.colors["muted"])


def _layout(
    layers: Sequence[int], num_layers: int
) -> tuple[list[tuple[float, float, str]], dict[int, tuple[float, float]]]:
    """Return (low, high, label) of each run of layers, and (low, high) of each adapter row."""
    ends = [*layers, num_layers - 1]
    unit = (TOP - BOTTOM) / (RUN * len(ends) + SITE * len(layers))
    runs, rows, y, start = [], {}, BOTTOM, 0
    for layer in dict.fromkeys(ends):
        if start <= layer:
            label = f"layer {layer}" if start == layer else f"layers {start} to {layer}"
            runs.append((y + 1, y + RUN * unit - 1, f"{label}, frozen"))
            y += RUN * unit
        if layer in layers:
            rows[layer] = (y, y + SITE * unit)
            y += SITE * unit
        start = layer + 1
    return runs, rows


def _draw_edit_and_gate(
    canvas: Canvas, measured: Measured, rows: Mapping[int, tuple[float, float]]
) -> None:
    """Draw the stored edit, the gate, and their lines to the adapters."""
    gates = records(measured.tables["gate"])
    first, top = min(rows.values())[0], max(rows.values())[1]
    size = measured.about["edit_bytes"] / 1024
    edit = ("one edit, kept\n\nimage, prompt\nand target run\nonce through the\n"
            f"unedited model\n\n{size:,.1f} kB")  # fmt: skip
    canvas.box(EDIT_X, (BOTTOM + top) / 2, 18, top - BOTTOM, edit, "both")
    for layer, (low, high) in rows.items():
        lanes = [LANES[site["modality"]][0] for site in records(measured.tables["sites"])
                 if site["layer"] == layer]  # fmt: skip
        x = min(lanes) + INPUT_OFFSET
        canvas.arrow((EDIT_X - 9, high - 2), (x, high - 2), kind="both", head=False)
        canvas.text(GATE_X, high + 0.2, "what adapters attend to", size=7.5, va="bottom")
        if gates:
            canvas.arrow((GATE_X, low + 2), (x, low + 2), kind="ink", line="--", head=False)
    for gate in gates:
        y = first - 7
        label = (f"{gate['kind']} gate\nreads {GATE_INPUTS[gate['token']]}\n"
                 f"after layer {gate['layer']}")  # fmt: skip
        if gate["kind"] in GATE_SCORES:
            label += f"\nopens from {GATE_SCORES[gate['kind']]}\n{gate['threshold']:.2f} on"
        canvas.arrow((GATE_X, y), (GATE_X, max(rows.values())[0] + 2), kind="ink", line="--",
                     head=False)  # fmt: skip
        canvas.box(GATE_X, y, 19, 17, label, "neutral")
        canvas.arrow((MODEL_X + MODEL_WIDTH / 2, y + 5.5), (GATE_X - 9.5, y + 5.5))
        canvas.arrow((EDIT_X - 9, y), (GATE_X + 9.5, y), kind="both")
        canvas.text(52, first + 3, "opens all or none", size=7.5, va="bottom", ha="left")


def _draw_adapter(canvas: Canvas, measured: Measured) -> None:
    """Draw one adapter from its inputs to its output, and below it the terms of the loss."""
    site, about = records(measured.tables["sites"])[0], measured.about
    kind, width, inner = site["modality"], site["d_model"], site["d_adapter"]
    signal = f"the edit's {SIGNALS[site['signal']]}\n{SPANS[site['signal_span']]}"
    norm = "own units, layer norm" if site["own_units"] else "layer norm"
    canvas.box(STATES_X, 32, 40, 8, f"states h of its tokens\nwidth {width}", kind)
    canvas.box(SIGNAL_X, 34, 42, 16, f"{signal}\nwidth {site['d_signal']}", "both", size=8)
    canvas.box(STATES_X, 47, 40, 8, f"{norm}\nquery {width} to {inner}")
    canvas.box(SIGNAL_X, 49, 42, 6, f"key, value {site['d_signal']} to {inner}")
    canvas.box(52, 59, 80, 6, f"cross-attention, {site['num_heads']} heads", kind, fill=0.25)
    canvas.box(STATES_X, 69, 40, 6, f"output map {inner} to {width}")
    canvas.box(STATES_X, 89, 14, 6, "plus")
    for x, low, high in ((STATES_X, 36, 43), (SIGNAL_X, 42, 46), (STATES_X, 51, 56),
                         (SIGNAL_X, 52, 56), (STATES_X, 62, 66), (STATES_X, 92, 98)):  # fmt: skip
        canvas.arrow((x, low), (x, high))
    if site["mapper"]:
        mapper = "influence mapper\nsigmoid of <h, last token\nof the edit's prompt>"
        canvas.box(STATES_X, 79, 14, 6, "times")
        canvas.box(SIGNAL_X, 76, 42, 12, mapper, "visual")
        canvas.arrow((STATES_X, 72), (STATES_X, 76))
        canvas.arrow((SIGNAL_X - 21, 79), (STATES_X + 7, 79))
        canvas.arrow((STATES_X, 82), (STATES_X, 86))
    else:
        canvas.arrow((STATES_X, 72), (STATES_X, 86))
    canvas.arrow((STATES_X - 20, 32), (4, 32), (4, 89), (STATES_X - 7, 89))
    canvas.text(STATES_X + 4, 97, "moved states", ha="left")
    loss = "Not trained"
    if about["steps"]:
        loss = f"Loss, {about['steps']:,} steps on {about['samples']:,} edits:"
    terms = [f"{term['weight']:g} x {LOSS_TERMS[term['term']]}"
             for term in records(measured.tables["losses"])]  # fmt: skip
    canvas.text(2, 22, "\n".join([loss, *terms]), ha="left", va="top", size=8)
