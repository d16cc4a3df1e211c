"""What is installed: every file that is not Python, with an author and a licence."""

import tomllib
import zlib
from pathlib import Path

ROOT = Path(__file__).parent.parent
ALL = tomllib.loads((ROOT / "pyproject.toml").read_text())
LARGEST = 40_000_000  # bytes of a wheel


def data_files(package: str) -> set[Path]:
    """The files that the build takes along."""
    patterns = ALL["tool"]["setuptools"]["package-data"][package]
    return {path for one in patterns for path in (ROOT / package).glob(one) if path.is_file()}


def test_all_templates_weights_and_tables_are_installed():
    for package in ("attrib", "editors"):
        ours = (path for path in (ROOT / package).rglob("*") if path.is_file())
        other = {path for path in ours if path.suffix not in (".py", ".pyc")}
        assert other <= data_files(package)


def test_what_is_installed_is_small():
    files = {path for package in ("attrib", "editors") for path in data_files(package)}
    compressed = sum(len(zlib.compress(path.read_bytes())) for path in files)  # as in a wheel
    assert compressed < LARGEST


def test_author_licence_and_python_agree_with_the_files():
    project = ALL["project"]
    (author,) = project["authors"]
    assert author["name"] in (ROOT / "LICENSE").read_text() and project["license"] == "MIT"
    versions = [one.split(" :: ")[-1] for one in project["classifiers"] if "3." in one]
    assert project["requires-python"] == f">={versions[0]}"
    assert "Typing :: Typed" in project["classifiers"] and (ROOT / "attrib" / "py.typed").exists()
