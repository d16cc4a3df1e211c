"""Steps of one command share what they need; commands do not."""

from attrib.cli.sharing import once, sharing


def test_inside_a_thing_is_made_once_and_outside_every_time():
    made = []

    def make():
        made.append(object())
        return made[-1]

    assert once("model", "a", make) is not once("model", "a", make)
    with sharing():
        first = once("model", "a", make)
        assert once("model", "a", make) is first
        assert once("answers", "a", make) is not first
        assert once("model", "b", make) is not first
        assert once("model", "a", make) is not first  # only the last of a kind is kept
    assert len(made) == 6
    assert once("model", "a", make) is made[-1]
    assert len(made) == 7


def test_a_command_shares_with_the_one_that_calls_it():
    with sharing():
        outer = once("model", "a", object)
        with sharing():
            assert once("model", "a", object) is outer
            inner = once("answers", "a", object)
        assert once("answers", "a", object) is inner
    with sharing():
        assert once("answers", "a", object) is not inner
