"""What `attrib app` computes and refuses, without a page: Gradio is not needed."""

import socket
import subprocess
import sys

import pytest
from explored import QUESTION, edit, scene, tiny

import attrib
from attrib.cli import local_app
from attrib.cli.app_session import Session, compare, verdict
from attrib.cli.local_app import AppOptions, app, is_loopback, make_session
from attrib.data import sample_image
from attrib.errors import AttribError, SetupError

STAR = "What color is the star? The answer is:"
RING = "What shape is red? The answer is:"


@pytest.fixture
def photo(tmp_path):
    sample_image().save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def session(tmp_path, monkeypatch):
    """A session whose only model is loaded once for all tests."""
    (tmp_path / "made").mkdir()
    one = Session(["tiny-llava"], [], tmp_path / "made")
    monkeypatch.setattr(one, "_load", lambda _: tiny())
    return one


def test_an_explored_answer_is_that_of_the_explorer(session, photo):
    seen = session.explore("tiny-llava", photo, STAR)
    page = attrib.explore(tiny(), photo, STAR)
    assert seen.answer == page.sides[0].text == "blue"
    assert seen.page.data == page.data | {
        "sides": [page.data["sides"][0] | {"seconds": seen.page.data["sides"][0]["seconds"]}]
    }
    shares = [token["p"] for token in page.data["sides"][0]["answer"]]
    product = 1.0
    for share in shares:
        product *= share
    assert seen.probability == pytest.approx(product, abs=1e-5)


def test_an_edit_holds_and_the_model_is_as_before(session, photo):
    before = {name: value.clone() for name, value in tiny().model.state_dict().items()}
    rows = session.compare("tiny-llava", "ft-l", photo, STAR, " green ", rephrased=" ",
                           others=[RING, "", "  "])  # fmt: skip
    assert [(row.role, row.question) for row in rows] == [("edited", STAR), ("other", RING)]
    edited, other = rows
    assert (edited.before, edited.after, edited.verdict) == ("blue", "green", "holds")
    assert (other.before, other.after, other.verdict) == ("ring", "ring", "unchanged")
    assert edited.decision is None
    assert all(value.equal(before[name]) for name, value in tiny().model.state_dict().items())


def test_a_gate_says_which_questions_it_opens_for():
    class Planted:
        def edit(self, *_):
            return edit()

    asked = [("edited", QUESTION), ("other", "What is it?")]
    edited, other = compare(tiny(), Planted(), [scene()], asked, "blue thing")
    assert edited.decision.opens and not other.decision.opens
    assert other.before == other.after and other.verdict == "unchanged"
    assert edited.verdict == "did not take"  # an untrained edit disturbs and installs nothing


def test_verdicts():
    assert verdict("edited", "blue", "Green.", "green") == "holds"
    assert verdict("rephrased", "blue", "green and so on", "green") == "holds"
    assert verdict("rephrased", "blue", "greenish", "green") == "did not take"
    assert verdict("other", "ring", "Ring.", "green") == "unchanged"
    assert verdict("other", "ring", "green", "green") == "leaks"


def test_editors_are_those_of_the_package_and_those_without_training(session, photo):
    assert session.editors == ["dualedit", "visedit", "ft-v", "ft-l", "ike", "tp"]
    (edited,) = session.compare("tiny-llava", "dualedit", photo, STAR, "red")
    assert (edited.before, edited.after, edited.verdict) == ("blue", "red", "holds")
    assert edited.decision is not None and edited.decision.opens


@pytest.mark.parametrize(("change", "why"), [
    ({"question": " "}, "type a question"),
    ({"target": ""}, "type the new answer"),
    ({"editor": "mend"}, "no editor 'mend'"),
    ({"model": "other"}, "no model 'other'"),
    ({"others": ["x"] * 60}, "at most 50"),
    ({"photo": "broken"}, "not an image"),
])  # fmt: skip
def test_wrong_input_is_refused_in_a_line(session, photo, tmp_path, change, why):
    given = {"model": "tiny-llava", "editor": "ft-l", "photo": photo, "question": STAR,
             "target": "green"} | change  # fmt: skip
    if given["photo"] == "broken":
        given["photo"] = tmp_path / "broken.png"
        given["photo"].write_text("<html>")
    with pytest.raises(AttribError, match=why) as error:
        session.compare(**given)
    assert "\n" not in str(error.value)


def test_a_session_has_the_models_asked_for_first(tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setattr(Session, "model", lambda _, name: loaded.append(name))
    own = make_session(AppOptions(model=["my/model"]), tmp_path)
    assert own.models[:2] == ["my/model", "tiny-llava"] and "tiny-blip2" in own.models
    plain = make_session(AppOptions(), tmp_path)
    assert plain.models[0] == "tiny-llava" and loaded == ["my/model", "tiny-llava"]
    with pytest.raises(SetupError, match=r"--edit .*nowhere"):
        make_session(AppOptions(edit=["nowhere"]), tmp_path)


def test_without_gradio_a_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(local_app, "find_spec", lambda _: None)
    with pytest.raises(SetupError, match=r"pip install 'attrib\[app\]'"):
        app(AppOptions())


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "localhost", "::1"])
def test_loopback_addresses(host):
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.0.7", "::", "example.org"])
def test_other_addresses_are_warned_about(host, monkeypatch):
    assert not is_loopback(host)
    monkeypatch.setattr(local_app, "find_spec", lambda _: True)
    said = []
    monkeypatch.setattr(local_app, "log", said.append)

    def stop(*_):
        raise SetupError("enough")

    monkeypatch.setattr(local_app, "make_session", stop)
    with pytest.raises(SetupError):
        app(AppOptions(host=host))
    assert len(said) == 1 and host in said[0]
    with pytest.raises(SetupError):
        app(AppOptions())
    assert len(said) == 1


def test_sizes_and_free_ports():
    assert AppOptions(max_upload="500KB").max_upload == "500KB"
    with pytest.raises(ValueError, match="such as 10MB"):
        AppOptions(max_upload="ten")
    port = local_app._free_port("127.0.0.1")
    with socket.socket() as one:
        one.bind(("127.0.0.1", port))


def test_what_computes_imports_no_gradio():
    code = (
        "import sys, attrib.cli.local_app, attrib.cli.app_session; print('gradio' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "False"
