"""Jobs: no work before the first event, and a result at the end."""

from __future__ import annotations

import pytest

from c2fdft_cli.progress import Job, Meter


def counting(log):
    log.append("started")
    try:
        yield 1
        yield 2
    finally:
        log.append("cleaned")
    return "done"


def test_a_job_runs_while_it_is_iterated():
    log = []
    job = Job(counting(log), total=2, title="count", unit="number")
    assert (len(job), log) == (2, [])
    with pytest.raises(RuntimeError, match="has not finished"):
        _ = job.result
    assert list(job) == [1, 2]
    assert (job.result, log) == ("done", ["started", "cleaned"])


def test_closing_a_job_cleans_up():
    log = []
    events = iter(Job(counting(log), total=2, title="count", unit="number"))
    next(events)
    events.close()
    assert log == ["started", "cleaned"]


def test_a_job_runs_once():
    log = []
    job = Job(counting(log), total=2, title="count", unit="number")
    assert (list(job), list(job), job.run()) == ([1, 2], [], "done")
    assert log == ["started", "cleaned"]


@pytest.mark.parametrize("how", ["closed", "failed"])
def test_a_job_that_was_stopped_cannot_be_continued(how):
    job = Job(counting([]), total=2, title="count", unit="number")
    events = iter(job)
    next(events)
    if how == "closed":
        events.close()
    else:
        with pytest.raises(ValueError, match="wrong"):
            events.throw(ValueError("wrong"))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="count: the job was stopped before its end"):
            job.run()
    with pytest.raises(RuntimeError, match="has not finished"):
        _ = job.result


def test_a_meter_reports_to_its_watcher():
    meter = Meter()
    meter.report(0.5)  # without a watcher
    job = Job(counting([]), total=2, title="count", unit="number", meter=meter)
    told = []
    job.meter.watch = told.append
    meter.report(0.75)
    assert told == [0.75]


def test_run_hands_out_the_events_and_cleans_up():
    assert Job(counting([]), total=2, title="count", unit="number").run() == "done"
    told = []
    assert Job(counting([]), total=2, title="count", unit="number").run(told.append) == "done"
    assert told == [1, 2]

    def stop(event):
        raise KeyboardInterrupt

    log = []
    with pytest.raises(KeyboardInterrupt) as _kept:  # with its traceback, and so the iteration
        Job(counting(log), total=2, title="count", unit="number").run(stop)
    assert log == ["started", "cleaned"]
