import os
import signal
import threading

import pytest

from hushgrad.study.interruption import finish_step_on_interrupt


@pytest.fixture(autouse=True)
def _interrupts_are_heard():
    """A process that a shell starts in the background is told to ignore SIGINT, and Python then leaves it so."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_first_interrupt_is_a_request_and_the_second_acts():
    before = signal.getsignal(signal.SIGINT)
    seen = []
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012, SIM117
        with finish_step_on_interrupt(lambda: seen.append("asked")) as requested:
            assert not requested()
            signal.raise_signal(signal.SIGINT)
            assert requested()
            assert seen == ["asked"]
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_termination_is_a_request_as_well():
    before = signal.getsignal(signal.SIGTERM)
    with finish_step_on_interrupt() as requested:
        os.kill(os.getpid(), signal.SIGTERM)
        assert requested()
    assert signal.getsignal(signal.SIGTERM) is before


def test_handlers_come_back_after_an_error():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError, match="x"), finish_step_on_interrupt():
        raise ValueError("x")
    assert signal.getsignal(signal.SIGINT) is before


def test_outside_the_main_thread_nothing_is_requested():
    answers = []

    def work():
        with finish_step_on_interrupt() as requested:
            answers.append(requested())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert answers == [False]
