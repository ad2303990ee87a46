#!/usr/bin/env bash
# Shows on this machine that a training can be trusted, in about five minutes on two CPU cores:
#
#   1. killed with kill -9 at random moments and resumed, it ends with the same bytes;
#   2. two processes move the weights as one process does with two micro-batches.
#
#   recipes/scripts/check_training.sh
#
# Both for the coarse and the fine stage of a small network. Exits with 1 when a figure fails.
# Settings, from the environment:
#   KILLS       how often each run is killed [5]
#   ITERATIONS  of the runs that are killed [40]
#   SEED        of the moments [2023]
#   WORK        folder to work in, kept at the end [a temporary one]
#   PYTHON      the Python that has c2fdft [python3]
set -euo pipefail
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
