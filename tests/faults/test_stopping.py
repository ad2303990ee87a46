"""Signals and kill -9 at random moments of every long command: no finished work is lost."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter

import pytest

from c2fdft_cli.signals import exit_code
from tests.faults.conftest import SEED, TRIES
from tests.kit.faults import COMMANDS, Case, Running, World, hidden, run

FAULTS = ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "twice", "both", "SIGUSR1", "SIGUSR2")
"""The faults: a signal; "twice", two Ctrl-C within 20 ms; "both", Ctrl-C and then SIGTERM."""

pytestmark = pytest.mark.slow


def inject(running: Running, fault: str) -> set[int]:
    """Send the signals of a fault and return the exit codes that are correct."""
    if fault in ("twice", "both"):
        running.send(signal.SIGINT)
        time.sleep(random.uniform(0, 0.02))
        running.send(signal.SIGINT if fault == "twice" else signal.SIGTERM)
        return {130} if fault == "twice" else {130, 143}
    number = signal.Signals[fault]
    running.send(number)
    return {-number} if fault == "SIGKILL" else {exit_code(number)}


def stop_and_run_again(case: Case, folder, fault: str, after: float) -> str:
    """Interrupt a command after `after` seconds, run it again to its end; return what happened."""
    running = Running(case.words, folder)
    time.sleep(after)
    right = inject(running, fault)
    code = running.end()
    assert code in {*right, 0}, running.said
    assert "Traceback" not in running.said
    assert "Exception ignored" not in running.said
    if fault != "SIGKILL":
        assert not hidden(folder), running.said
        if code == 0:
            return "finished before"
        assert "error: " in running.said
        if "state saved" in running.said:
            assert "resume with c2fdft train-" in running.said
    again = run((*case.words, *(case.again if case.out.exists() else ())), folder)
    assert again == 0, running.said
    return "killed" if fault == "SIGKILL" else "ended"


@pytest.fixture(scope="module")
def finished(world: World, tmp_path_factory):
    """Return the content of an undisturbed command's output, and its run time in seconds."""
    known: dict[str, tuple[object, float]] = {}

    def result_of(name: str) -> tuple[object, float]:
        if name not in known:
            folder = tmp_path_factory.mktemp(name)
            case, start = world.case(name, folder), time.monotonic()
            running = Running(case.words, folder)
            assert running.end() == 0, running.said
            known[name] = case.content(case.out), time.monotonic() - start
        return known[name]

    return result_of


@pytest.mark.parametrize("name", ["prepare", "train-coarse", "restore", "convert"])
def test_a_signal_at_a_random_moment_loses_nothing(world: World, finished, tmp_path, name):
    expected, seconds = finished(name)
    random.seed(f"{name}{SEED}")
    case = world.case(name, tmp_path)
    fault = random.choice([fault for fault in FAULTS if fault != "SIGKILL"])
    after = random.uniform(0.2, max(0.3, seconds))
    try:
        stop_and_run_again(case, tmp_path, fault, after)
        assert case.content(case.out) == expected
    except AssertionError as error:
        error.add_note(f"C2FDFT_FAULT_SEED={SEED}: {fault} after {after:.3f} s")
        raise


@pytest.mark.long
@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_at_many_moments_lose_nothing(world: World, finished, tmp_path_factory, fault, name):
    expected, seconds = finished(name)
    outcomes: Counter[str] = Counter()
    random.seed(f"{name}{fault}")
    for number in range(TRIES):
        folder = tmp_path_factory.mktemp(f"{name}-{fault}")
        case = world.case(name, folder)
        after = random.uniform(0.05, max(0.3, seconds))
        outcome = stop_and_run_again(case, folder, fault, after)
        outcomes[outcome] += 1
        assert case.content(case.out) == expected, (number, after, outcome)
    if table := os.environ.get("C2FDFT_FAULT_TABLE"):
        with open(table, "a", encoding="utf-8") as file:
            told = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
            file.write(f"| {fault} | {name} | {TRIES} | {told} | nothing |\n")


@pytest.mark.parametrize("moment", [0.0, 0.85])
def test_a_signal_while_the_program_is_still_loading(world: World, tmp_path, moment):
    import subprocess

    from tests.kit.processes import start, wait_for_handlers

    case = world.case("restore", tmp_path)
    process = start(
        "-m", "c2fdft_cli", *case.words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    # Earlier signals hit Python's own start, where an exception within an import may be dropped.
    wait_for_handlers(process)
    time.sleep(moment)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
