#!/usr/bin/env bash
# Times the parts of the program with `c2fdft bench`, and prints one Markdown table.
#
#   recipes/scripts/bench.sh [RECIPE] [SHARDS] > table.md
set -euo pipefail
usage() {
  sed -n '4s/^# *//p' "$0" >&2
  exit 2
}
case ${1:-} in -*) usage ;; esac
[ $# -le 2 ] || usage
recipe=${1:-derain}
shards=${2:-}

row() {
  local document
  document=$(c2fdft bench "$@" --recipe "$recipe" --json)
  python3 -c '
import json, sys
r = json.loads(sys.argv[1])
show = lambda v, f: "-" if v is None else format(v, f)
print("| {part} | {size} | {batch} | {precision} | {compiled} |".format(**r),
      show(r["seconds"], ".4f"), "|", show(r["images_per_second"], ".2f"), "|",
      show(r["tflops"], ".3f"), "|", show(r["of_gemm"], ".2f"), "|",
      show(r["peak_memory"] / 2**20, ".0f"), "|")' "$document"
}

echo "| part | px | batch | precision | compiled | s | images/s | TFLOP/s | of GEMM | peak MiB |"
echo "|---|---|---|---|---|---|---|---|---|---|"
for precision in fp32 auto; do
  row forward --size 256 --precision "$precision"
  row train-step --size 64 --batch 4 --precision "$precision"
  row restore --size 256 --precision "$precision"
done
if [ -n "$shards" ]; then
  for shape in "32 360" "64 96" "128 24"; do
    read -r size batch <<<"$shape"
    row loader --size "$size" --batch "$batch" --data "$shards" --precision fp32
  done
fi
