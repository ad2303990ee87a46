#!/usr/bin/env bash
# Checks on this machine, in about five minutes on two CPU cores, that a training
#
#   1. ends with the same bytes when it is killed with kill -9 at random moments and resumed;
#   2. changes the weights in two processes as it does in one process with two micro-batches.
#
#   recipes/scripts/check_training.sh
#
# Both are checked for the coarse and the fine stage of a small network. Exits with 1 if a check fails.
# Settings, from the environment:
#   KILLS       how often each run is killed [5]
#   ITERATIONS  length of the runs that are killed [40]
#   SEED        seed of the moments at which they are killed [2023]
#   WORK        folder to work in, which is kept [a temporary folder]
#   PYTHON      the Python that c2fdft is installed in [python3]
set -euo pipefail
[ $# -eq 0 ] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3}
if [ -n "${WORK:-}" ]; then
  work=$WORK
  mkdir -p "$work"
else
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
fi

photos=$("$python" -c 'import pathlib, skimage; print(pathlib.Path(skimage.__file__).parent / "data")')
mkdir -p "$work/clean"
for photo in astronaut.png chelsea.png coffee.png rocket.jpg; do
  cp "$photos/$photo" "$work/clean/"
done
"$python" -m c2fdft_cli prepare "$work/clean" --synthesize rain --val 1 --out "$work/shards" >/dev/null
"$python" "$here/check_training.py" "$work" \
  "${KILLS:-5}" "${ITERATIONS:-40}" "${SEED:-2023}"
