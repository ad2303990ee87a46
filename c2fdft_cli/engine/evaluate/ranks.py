"""Divide an evaluation among the processes of torchrun: each of n scores every n-th image."""

from __future__ import annotations

from dataclasses import replace
from itertools import zip_longest

from c2fdft_cli.engine.evaluate.job import EvalResult
from c2fdft_cli.engine.evaluate.pairing import fail
from c2fdft_cli.engine.evaluate.report import Gallery
from c2fdft_cli.errors import UsageError
from c2fdft_cli.execution.device import Runtime, make_runtime
from c2fdft_cli.execution.distributed import join_ranks


def join() -> Runtime:
    """Join the other processes, if there are any.

    Scores are gathered on the CPU, whatever device the network runs on.
    """
    runtime = make_runtime("cpu", "fp32")
    join_ranks(runtime)
    return runtime


def merge_results(everyone: list[EvalResult]) -> EvalResult:
    """Merge the results of all processes, given by rank.

    The rows are in the same order as with one process, or nearly if an image could not be read.

    Raises:
        UsageError: no process had anything to score.
        DataError: no process could score any of its images.
    """
    # Process r has scored images r, r + world, r + 2 * world, ...: taking one row of each process
    # in turn restores the order.
    turns = zip_longest(*(one.rows for one in everyone))
    merged = [row for turn in turns for row in turn if row is not None]
    unreadable = [problem for one in everyone for problem in one.unreadable]
    if not merged:
        fail(unreadable, len(unreadable), "image")
        raise UsageError("there is nothing to score")
    notes = list(dict.fromkeys(note for one in everyone for note in one.notes))
    return replace(everyone[0], rows=merged, notes=notes, unreadable=unreadable)


def merge_pictures(everyone: list[Gallery]) -> Gallery:
    """Merge the report's pictures of all processes."""
    first, *others = everyone
    for other in others:
        first.merge(other)
    return first
