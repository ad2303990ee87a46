"""Settings of the process that several threads need (see also execution/test_surroundings.py)."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from functools import partial
from threading import Thread

import pytest

from c2fdft_cli.process_settings import ProcessSettings, hold_while_forking


def in_thread(function: Callable[[], object]) -> None:
    thread = Thread(target=function)
    thread.start()
    thread.join()


def test_the_last_block_restores_what_the_first_one_found() -> None:
    value = ["theirs"]

    def change(undo: list[Callable[[], object]]) -> None:
        undo.append(partial(value.__setitem__, 0, value[0]))
        value[0] = "ours"

    settings = ProcessSettings(change)
    first, second = settings.changed(), settings.changed()
    in_thread(first.__enter__)
    in_thread(second.__enter__)
    in_thread(lambda: first.__exit__(None, None, None))
    assert value == ["ours"]
    in_thread(lambda: second.__exit__(None, None, None))
    assert value == ["theirs"]


def test_what_a_signal_keeps_from_being_restored_is_restored_after_the_next_block() -> None:
    values = ["theirs", "theirs"]
    signals = [KeyboardInterrupt]

    def restore(place: int, before: str) -> None:
        if signals:
            raise signals.pop()
        values[place] = before

    def change(undo: list[Callable[[], object]]) -> None:
        for place in (0, 1):
            undo.append(partial(restore, place, values[place]))
            values[place] = "ours"

    settings = ProcessSettings(change)
    with pytest.raises(KeyboardInterrupt), settings.changed():
        pass
    with settings.changed():
        assert values == ["ours", "ours"]
    assert values == ["theirs", "theirs"]


def test_a_system_that_cannot_fork_needs_no_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.delattr(os, "register_at_fork", raising=False)
    hold_while_forking(threading.Lock())
