"""Which evaluations may go on in a folder: those of the editor that it holds scores of."""

import json

import pytest
from conftest import tiny_vlm
from planted_editors import Nothing, Says, sample

from attrib.data import EditData
from attrib.errors import SetupError
from editors.evaluation import prepare_evaluation
from editors.evaluation.reference_model import ReferenceModel
from editors.evaluation.scoring import Scoring

UNTRAINED = {"settings": {"steps": 5}}  # an editor without files is identified by its settings
DATA = EditData("d", "test", [sample()])


@pytest.fixture(scope="module")
def reference():
    return ReferenceModel(tiny_vlm("llava"), ("paper",))


@pytest.fixture
def scored(reference, tmp_path):
    """Prepare an evaluation in one folder, for an editor that is called x in tables."""

    def scored(editor, **options):
        scoring = Scoring.of(editor, reference, ("paper",), "x")
        options |= {"editor": editor.name}
        run = prepare_evaluation(scoring, DATA, tmp_path, [], options=options, free={"editor"})
        return run.execute(scoring)

    return scored


def test_an_editor_with_the_settings_of_another_is_another_run(scored):
    assert scored(Says(), **UNTRAINED).manifest["options"]["editor_name"] == "says"
    assert scored(Says(), **UNTRAINED).used == ["s0"]
    with pytest.raises(SetupError, match='editor_name: "says" there, "nothing" now; give another'):
        scored(Nothing(), **UNTRAINED)


@pytest.mark.parametrize("options", [UNTRAINED, {}])
def test_a_folder_of_an_earlier_version_goes_on_with_its_own_editor(scored, tmp_path, options):
    """Its manifest does not name the editor, but of one without files what was asked for."""
    scored(Says(), **options)
    path = tmp_path / "manifest.json"
    made = json.loads(path.read_text())
    del made["options"]["editor_name"]
    path.write_text(json.dumps(made))
    if options:
        with pytest.raises(SetupError, match='editor_name: null there, "nothing" now'):
            scored(Nothing(), **options)
    assert scored(Says(), **options).manifest["options"]["editor_name"] == "says"
