"""Steps of one command share a cache; commands do not."""

from attrib.cli.caching import cached, caching


def test_inside_a_thing_is_made_once_and_outside_every_time():
    made = []

    def make():
        made.append(object())
        return made[-1]

    assert cached("model", "a", make) is not cached("model", "a", make)
    with caching():
        first = cached("model", "a", make)
        assert cached("model", "a", make) is first
        assert cached("answers", "a", make) is not first
        assert cached("model", "b", make) is not first
        assert cached("model", "a", make) is not first  # only the last of a kind is kept
    assert len(made) == 6
    assert cached("model", "a", make) is made[-1]
    assert len(made) == 7


def test_a_command_shares_with_the_one_that_calls_it():
    with caching():
        outer = cached("model", "a", object)
        with caching():
            assert cached("model", "a", object) is outer
            inner = cached("answers", "a", object)
        assert cached("answers", "a", object) is inner
    with caching():
        assert cached("answers", "a", object) is not inner
