from hypothesis import given, settings
from hypothesis import strategies as st

from hushgrad.printable import printable


@settings(deadline=None)
@given(st.text())
def test_nothing_that_moves_a_terminal_survives(text):
    assert all(character.isprintable() for character in printable(text))


def test_ordinary_text_stays_and_long_text_is_cut():
    assert printable("Größe (cm)") == "Größe (cm)"
    assert len(printable("x" * 1000)) == 80
