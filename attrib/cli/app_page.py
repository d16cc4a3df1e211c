"""The layout of the local app in Gradio: fields, buttons, and results as HTML.

Everything that a user or a model wrote is escaped. Fonts are the system's, so that a browser asks
no other server for anything.
"""

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

import gradio as gr  # pyright: ignore[reportMissingImports]  (optional)

from attrib.cli.app_session import HOLDS, LEAKS, UNCHANGED, Compared, Session
from attrib.errors import AttribError, is_out_of_memory
from attrib.report.page import visible

if TYPE_CHECKING:
    from attrib.explorer.questions import Decision

QUESTION = "What color is the star? The answer is:"
REPHRASED = "What is the color of the star? The answer is:"
OTHERS = "What shape is red? The answer is:\nWhat color is the heart? The answer is:"
ROLES = {
    "edited": "the edited question",
    "rephrased": "in other words",
    "other": "another question",
}
COLUMNS = ("Before", "After", "Edit applied", "Verdict")
GOOD = (HOLDS, UNCHANGED)
CSS = """
.problem, .said { margin: 0; font-size: 1rem; overflow-wrap: anywhere }
.problem { border-left: 4px solid #c2410c; padding-left: .75rem }
.said b { font-size: 1.25rem }
table.compared { border-collapse: collapse; width: 100%; font-size: .9rem; border: 0 }
table.compared tr { border: 0 !important }
table.compared :is(th, td) { text-align: left; vertical-align: top; padding: .4rem .6rem;
  border: 0; border-bottom: 1px solid var(--border-color-primary); overflow-wrap: anywhere }
table.compared tbody th { font-weight: normal }
.compared small { display: block; color: var(--body-text-color-subdued) }
@media (max-width: 640px) { /* a block per question */
  table.compared thead { display: none }
  table.compared :is(tbody, tr, th, td) { display: block }
  table.compared tr { border-top: 1px solid var(--border-color-primary) !important;
    padding: .4rem 0 }
  table.compared :is(th, td) { border: 0; padding: .1rem 0 }
  table.compared td[data-label]::before { content: attr(data-label) ": "; font-weight: 600 }
  .compared td small { display: inline }
}
.good, .bad { font-weight: 600 }
.good span::before { content: "\\2713  " }
.bad span::before { content: "\\2717  " }
.bad { color: #c2410c }
.dark .bad { color: #fb923c }
iframe { background: #fff; border-radius: 4px }
.dark iframe { background: #14181c }
"""


def theme() -> Any:
    """Gradio's plain theme with the system's fonts: its own are downloaded."""
    plain = gr.themes.Base(
        primary_hue="indigo",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    return plain.set(body_text_color_subdued="*neutral_600")  # neutral_400 is too pale to read


def build(session: Session, sample: Path) -> Any:
    """The page of a session.

    Args:
        session: What computes.
        sample: The picture that is there at the start.
    """
    with gr.Blocks(title="attrib", analytics_enabled=False) as page:
        gr.Markdown("# attrib\nWhere does an answer come from, and does an edit hold?")
        with gr.Row():
            photo = gr.Image(str(sample), label="Photo", type="filepath", height=260,
                             sources=["upload", "clipboard"], elem_id="photo")  # fmt: skip
            # The project's reader opens the file, with its limits; Gradio's would come before it.
            photo.preprocess = lambda payload: payload and payload.path
            with gr.Column(scale=2):
                model = gr.Dropdown(session.models, value=session.models[0], label="Model")
                question = gr.Textbox(QUESTION, label="Question", elem_id="question")
        inputs = [photo, question, model]
        with gr.Tab("Explore"):
            _explore_tab(session, inputs)
        with gr.Tab("Edit"):
            _edit_tab(session, inputs)
    return page


def _explore_tab(session: Session, inputs: list[Any]) -> None:
    button = gr.Button("Explore", variant="primary", elem_id="explore")
    answer = gr.HTML(elem_id="answer")
    download = gr.DownloadButton("Download the page", size="sm", visible=False, elem_id="download")
    frame = gr.HTML(elem_id="explorer")

    def explore(photo: str | None, question: str, model: str) -> tuple[str, str, Any]:
        seen = session.explore(model, _path(photo), question)
        path = Path(mkdtemp(dir=session.folder)) / "explore.html"
        said = f"<b>{_text(seen.answer)}</b>, probability {seen.probability:.1%}"
        shown = gr.DownloadButton(value=str(seen.page.save(path)), visible=True)
        return f'<p class="said">{said}</p>', seen.page._repr_html_(), shown

    run = _explained(explore, "", gr.DownloadButton(visible=False))
    _on(button, run, inputs, [answer, frame, download])
    inputs[1].submit(run, inputs, [answer, frame, download], **_alone())


def _edit_tab(session: Session, inputs: list[Any]) -> None:
    editors = session.editors
    first = editors[0] if session.folders else "ft-l"
    with gr.Row():
        editor = gr.Dropdown(editors, value=first, label="Editor",
                             info="ft-l, ft-v, ike and tp need no training")  # fmt: skip
        target = gr.Textbox("green", label="New answer of the question", elem_id="target")
    rephrased = gr.Textbox(REPHRASED, label="The question in other words", elem_id="rephrased")
    others = gr.Textbox(OTHERS, label="Other questions about the photo, one a line", lines=3,
                        elem_id="others")  # fmt: skip
    button = gr.Button("Edit and compare", variant="primary", elem_id="edit")
    table = gr.HTML(elem_id="compared")

    def edit(
        photo: str | None, question: str, model: str, editor: str, target: str, rephrased: str,
        others: str,
    ) -> str:  # fmt: skip
        found = session.compare(
            model,
            editor,
            _path(photo),
            question,
            target,
            rephrased=rephrased,
            others=others.splitlines(),
        )
        return table_html(found)

    _on(button, _explained(edit), [*inputs, editor, target, rephrased, others], [table])


def _on(button: Any, run: Callable[..., Any], inputs: list[Any], outputs: list[Any]) -> None:
    button.click(run, inputs, outputs, **_alone())


def _alone() -> dict[str, Any]:
    """How an event is queued: one at a time, since all use the model; not offered as an API."""
    return {"concurrency_limit": 1, "concurrency_id": "model", "api_visibility": "private"}


def _explained(run: Callable[..., Any], *empty: Any) -> Callable[..., Any]:
    """A function that returns a line on the page, and `empty` for the rest, if a user erred."""

    def explained(*given: Any) -> Any:
        try:
            return run(*given)
        except AttribError as error:
            line = str(error)
        except Exception as error:
            if not is_out_of_memory(error):
                raise  # a bug: its traceback goes to the terminal
            line = "out of memory; take a smaller photo or model"
        said = f'<p class="problem" role="alert">{_text(" ".join(line.split()))}</p>'
        return (said, *empty) if empty else said

    return explained


def table_html(rows: Sequence[Compared]) -> str:
    """The comparison as a table under a sentence."""
    heads = "".join(f"<th scope='col'>{name}</th>" for name in ("Question", *COLUMNS))
    body = "".join(map(_row, rows))
    return (
        f"<p>{_summary(rows)}</p><table class='compared'><thead><tr>{heads}</tr></thead>"
        f"<tbody>{body}</tbody></table>"
    )


def _row(row: Compared) -> str:
    mark = "good" if row.verdict in GOOD else "bad"
    shown = [_text(row.before), _text(row.after), _applied(row.decision)]
    shown.append(f"<span class='{mark}'><span>{row.verdict}</span></span>")
    cells = [f"<td data-label='{c}'>{s}</td>" for c, s in zip(COLUMNS, shown, strict=True)]
    name = f"{_text(row.question)}<small>{ROLES[row.role]}</small>"
    return f"<tr><th scope='row'>{name}</th>{''.join(cells)}</tr>"


def _summary(rows: Sequence[Compared]) -> str:
    others = [row for row in rows if row.role == "other"]
    leaks = sum(row.verdict == LEAKS for row in others)
    taken = "The edit holds" if rows[0].verdict == HOLDS else "The edit did not take"
    if not others:
        return f"{taken}."
    return f"{taken}; of {len(others)} other questions {leaks} changed their answers."


def _applied(decision: "Decision | None") -> str:
    if decision is None:
        return "yes <small>no gate: every input</small>"
    numbers = f"score {decision.score:.3f}, threshold {decision.threshold:.3f}"
    return f"{'yes' if decision.opens else 'no'} <small>{numbers}</small>"


def _path(photo: str | None) -> Path | None:
    return Path(photo) if photo else None


def _text(text: str) -> str:
    """Text of a user or a model for HTML; an empty answer is shown as such."""
    return escape(visible(text)) or "<i>nothing</i>"
