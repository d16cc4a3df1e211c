"""The public names: all there, nothing loaded before it is used."""

import subprocess
import sys

import pytest

import attrib


@pytest.mark.parametrize("name", attrib.__all__)
def test_every_public_name_is_there(name):
    assert getattr(attrib, name) is getattr(attrib, name)
    assert name in dir(attrib)


def test_a_name_that_is_none_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'heat_maps'"):
        _ = attrib.heat_maps


def test_importing_attrib_loads_nothing_heavy():
    code = "import sys, attrib; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
