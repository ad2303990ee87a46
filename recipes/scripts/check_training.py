"""The checks of check_training.sh: exact resume after kill -9, and two processes against one."""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

STAGES = ("coarse", "fine")
RANK_STEPS = 20
LARGEST_DIFFERENCE = 1e-3
PATIENCE = 300.0
SAVE_EVERY = 3
NETWORK = ("network.dim=8", "network.blocks=[1,1,1,1]", "sampling.grid=[999,500]")
COMMON = ("train.log_every=1", "train.validation_images=1", "fine.ssim=paper", "train.compile=off",
          "fine.recompute=call", "train.tensorboard=false")  # fmt: skip
PLAIN = ("--device", "cpu", "--precision", "fp32")


class Check:
    """Runs trainings in a folder and prints whether each check holds.

    Args:
        work: folder that holds `shards/`; the runs are written there too.
        kills: how often each run is killed.
        iterations: length of the runs that are killed.
        seed: seed of the moments at which they are killed.
    """

    def __init__(self, work: Path, kills: int, iterations: int, seed: int) -> None:
        self.work = work
        self.kills = kills
        self.iterations = iterations
        self.seed = seed
        self.good = True
        self.last: subprocess.Popen[bytes] | None = None

    def run(self) -> bool:
        """Run all checks, and return whether each one holds."""
        try:
            for stage in STAGES:
                self.killed(stage)
            for stage in STAGES:
                self.ranks(stage)
        finally:
            # A training has its own process group, so a signal to this script does not end it.
            if self.last is not None and self.last.poll() is None:
                os.killpg(self.last.pid, signal.SIGKILL)
        return self.good

    def killed(self, stage: str) -> None:
        """Compare an uninterrupted run with one that is killed and resumed."""
        whole, cut = self.work / f"{stage}-whole", self.work / f"{stage}-killed"
        start = self.words(stage, self.iterations, self.stage_settings(stage))
        begin = time.monotonic()
        self.finish(self.command(stage, whole, start))
        each = (time.monotonic() - begin) / self.iterations
        moments = self.kill_and_resume(stage, cut, start, each)
        same = {
            name: digest(whole / f"{stage}.pt", name) == digest(cut / f"{stage}.pt", name)
            for name in ("params", "params_ema")
        }
        same["loss column"] = losses(whole) == losses(cut) != []
        words = ", ".join(f"{k} {'identical' if v else 'DIFFERENT'}" for k, v in same.items())
        place = f"kill -9 after steps {', '.join(map(str, moments))} of {self.iterations}"
        enough = len(moments) == self.kills
        self.say(f"{stage}: {place} (seed {self.seed}): {words}", all(same.values()) and enough)
        self.say(f"  params {digest(cut / f'{stage}.pt', 'params')[:16]}, "
                 f"{len(losses(cut))} losses, last {losses(cut)[-1]}")  # fmt: skip

    def kill_and_resume(self, stage: str, run: Path, start: list[str], each: float) -> list[int]:
        """Kill a run at random moments, resume it each time, and let it finish.

        Returns:
            The last step that was logged before each kill.
        """
        rng = random.Random(f"{self.seed}-{stage}")  # noqa: S311  # nothing secret
        # After the first saved state and before the last steps, so that every kill finds the
        # process running.
        goals = sorted(rng.sample(range(SAVE_EVERY + 1, self.iterations - 2), self.kills))
        seen, words = [], start
        for goal in goals:
            process = self.start(self.command(stage, run, words))
            if not wait_for(run / "metrics.csv", goal, process):
                break
            time.sleep(rng.uniform(0.0, each))
            if process.poll() is not None:
                break
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            seen.append(last_step(run / "metrics.csv"))
            words = ["--resume"]
        else:
            self.finish(self.command(stage, run, words))
            return seen
        process.wait()
        self.say(f"{stage}: the run ended before it was killed at step {goal}", False)
        return seen

    def ranks(self, stage: str) -> None:
        """Compare two gloo processes with one process that takes two micro-batches."""
        settings = [f"{stage}.patches=[32]", f"{stage}.batches=[8]", "train.validate_every=1000"]
        words = self.words(stage, RANK_STEPS, settings, init=True)
        one, two = self.work / f"{stage}-one", self.work / f"{stage}-two"
        self.finish(self.command(stage, one, [*words, "train.micro_batch=4"]))
        launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
        self.finish(self.command(stage, two, words, launcher))
        # Both start from the averaged weights of the coarse stage.
        before = weights(self.work / "coarse-whole" / "coarse.pt", "params_ema")
        change, other = (
            torch.cat([(value - before[name]).double().flatten() for name, value in after.items()])
            for after in (weights(run / f"{stage}.pt", "params") for run in (one, two))
        )
        relative = ((other - change).norm() / change.norm()).item()
        self.say(
            f"{stage}: 2 processes against 2 micro-batches, {RANK_STEPS} steps, fp32: relative "
            f"difference of the weight change {relative:.1e} (below {LARGEST_DIFFERENCE:.0e}; "
            f"norm of the change {change.norm().item():.2g})",
            relative < LARGEST_DIFFERENCE,
        )

    def stage_settings(self, stage: str) -> list[str]:
        """Settings with two patch sizes in turn, and with states and scores in between."""
        return [
            f"{stage}.patches=[32,48]",
            f"{stage}.batches=[8,4]",
            f"{stage}.switch_every=7",
            f"{stage}.cycles=100",
            f"train.save_every={SAVE_EVERY}",
            f"train.validate_every={max(1, self.iterations // 2)}",
        ]

    def words(
        self, stage: str, iterations: int, settings: list[str], init: bool = False
    ) -> list[str]:
        """Return the arguments that start a new training."""
        words = ["--recipe", "tiny", "--data", str(self.work / "shards"), *NETWORK, *COMMON]
        words += [f"{stage}.iterations={iterations}", *settings]
        words += [f"{stage}.periods=[{{length: {iterations}, floor: 1.0e-5}}]"]
        if init or stage == "fine":
            words += ["--init", str(self.work / "coarse-whole" / "coarse.pt")]
        return words

    def command(
        self, stage: str, run: Path, words: list[str], launcher: tuple[str, ...] = ()
    ) -> list[str]:
        """Return the whole command line of a training."""
        program = [sys.executable, *launcher, "-m", "c2fdft_cli", f"train-{stage}"]
        return [*program, "--out", str(run), *PLAIN, *words]

    def start(self, command: list[str]) -> subprocess.Popen[bytes]:
        """Start a command in a new process group, with its output in a file."""
        # torchrun gives each process one thread; another number of threads rounds differently.
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        with (self.work / "output.log").open("ab") as log:
            self.last = subprocess.Popen(  # noqa: S603
                command, stdout=log, stderr=log, start_new_session=True, env=env
            )
        return self.last

    def finish(self, command: list[str]) -> None:
        """Run a command to its end; exit with the last lines of its output if it fails."""
        code = self.start(command).wait()
        if code:
            said = (self.work / "output.log").read_text(errors="replace").splitlines()[-20:]
            raise SystemExit("\n".join([*said, f"exit code {code}: {' '.join(command)}"]))

    def say(self, line: str, good: bool = True) -> None:
        """Print the result of a check, and remember whether it holds."""
        self.good = self.good and good
        sys.stdout.write(line + ("" if good else "  FAILED") + "\n")
        sys.stdout.flush()


def wait_for(metrics: Path, goal: int, process: subprocess.Popen[bytes]) -> bool:
    """Wait until a running process has logged a step.

    Returns:
        Whether it has; False if the process ends first or takes longer than PATIENCE.
    """
    # A resumed run first replaces the file by one that is cut back to its state.
    old = metrics.stat().st_ino if metrics.exists() else None
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and metrics.stat().st_ino != old and last_step(metrics) >= goal:
            return True
        time.sleep(0.005)
    return False


def last_step(metrics: Path) -> int:
    """Return the iteration of the last complete row, or 0 if there is none."""
    rows = metrics.read_text().rpartition("\n")[0].splitlines()[1:]
    return int(rows[-1].split(",")[0]) if rows else 0


def losses(run: Path) -> list[str]:
    """Return the loss column as text."""
    with (run / "metrics.csv").open(newline="") as file:
        return [row["loss"] for row in csv.DictReader(file)]


def weights(checkpoint: Path, name: str) -> dict[str, torch.Tensor]:
    """Load the state dict `params` or `params_ema` of a checkpoint."""
    content = torch.load(checkpoint, weights_only=True, map_location="cpu")
    state: dict[str, torch.Tensor] = content[name]
    return state


def digest(checkpoint: Path, name: str) -> str:
    """Return the SHA-256 of the weights' names and bytes."""
    total = hashlib.sha256()
    for key, value in sorted(weights(checkpoint, name).items()):
        total.update(key.encode() + value.contiguous().numpy().tobytes())
    return total.hexdigest()


def main() -> int:
    """Run the checks; return 0 if all of them hold, else 1."""
    parser = argparse.ArgumentParser(
        description="The checks of check_training.sh, which makes the shards and starts them."
    )
    parser.add_argument("work", type=Path, help="folder that holds shards/, for the runs too")
    parser.add_argument("kills", type=int, help="how often each run is killed")
    parser.add_argument("iterations", type=int, help="length of the runs that are killed")
    parser.add_argument("seed", type=int, help="seed of the moments at which they are killed")
    given = parser.parse_args()
    # Exit by an exception, so that `finally` ends the training.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    return 0 if Check(given.work, given.kills, given.iterations, given.seed).run() else 1


if __name__ == "__main__":
    sys.exit(main())
