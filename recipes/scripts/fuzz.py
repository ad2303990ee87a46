"""Feed mutated files to the program's readers: is each read or refused, in bounded time and memory?

    python recipes/scripts/fuzz.py                              all targets, 20,000 inputs each
    python recipes/scripts/fuzz.py checkpoints --inputs 500     one target
    python recipes/scripts/fuzz.py checkpoints --only 4711 --keep input.pth     one input again

Checks that reading an input raises nothing but the program's own errors, takes at most 5 s, and
needs at most 2 GiB more memory. Prints one JSON document per target; the exit code is 1 if there
was a defect. Targets are registered in `tests/kit/fuzz_*.py`. Linux only.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.kit import fuzz


@dataclass
class Defect:
    """How often inputs had a defect of one kind, and the numbers of the first five of them."""

    count: int
    inputs: list[int]


@dataclass(frozen=True)
class Report:
    """Counts, times and defects (by kind) of a target: the JSON document that is printed."""

    target: str
    seed: int
    inputs: int
    read: int
    refused: int
    defects: dict[str, Defect]
    seconds: float
    slowest_seconds: float
    peak_bytes: int


def report(target: fuzz.Target, inputs: int, seed: int) -> Report:
    """Try the inputs of a target."""
    start = time.perf_counter()
    kinds: Counter[str] = Counter()
    defects: dict[str, Defect] = {}
    slowest, peak = 0.0, 0
    for outcome in fuzz.fuzz(target, inputs, seed):
        kinds[outcome.what] += 1
        slowest, peak = max(slowest, outcome.seconds), max(peak, outcome.peak_bytes)
        if outcome.is_defect():
            sys.stderr.write(f"{target.name} {outcome.number}: {outcome.what}\n")
            defect = defects.setdefault(outcome.what, Defect(0, []))
            defect.count += 1
            if defect.count <= 5:
                defect.inputs.append(outcome.number)
        if kinds.total() % 1000 == 0:
            sys.stderr.write(f"{target.name}: {kinds.total()} of {inputs}\n")
    return Report(
        target=target.name,
        seed=seed,
        inputs=kinds.total(),
        read=kinds["read"],
        refused=kinds["refused"],
        defects=defects,
        seconds=round(time.perf_counter() - start, 1),
        slowest_seconds=round(slowest, 3),
        peak_bytes=peak,
    )


def again(target: fuzz.Target, number: int, seed: int, keep: Path | None) -> None:
    """Read one input in this process, so that an error shows its traceback."""
    with tempfile.TemporaryDirectory() as folder:
        data = fuzz.made_input(target, target.seeds(Path(folder)), seed, number)
        path = keep or Path(folder) / f"input{target.suffix}"
        path.write_bytes(data)
        target.read(path)


def main() -> int:
    """Try the requested targets."""
    known = fuzz.targets()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(known))
    parser.add_argument(
        "--inputs", type=int, default=20_000, help="number of inputs for each target"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="NUMBER", help="read one input again")
    parser.add_argument(
        "--keep", type=Path, metavar="FILE", help="with --only: save the input there"
    )
    options = parser.parse_args()
    if unknown := set(options.targets) - set(known):
        parser.error(f"unknown target {', '.join(unknown)}; there are {', '.join(known)}")
    defects = 0
    for name in options.targets or known:
        if options.only is not None:
            again(known[name], options.only, options.seed, options.keep)
            continue
        done = report(known[name], options.inputs, options.seed)
        defects += len(done.defects)
        sys.stdout.write(json.dumps(asdict(done)) + "\n")
        sys.stdout.flush()
    return 1 if defects else 0


if __name__ == "__main__":
    sys.exit(main())
