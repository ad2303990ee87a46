#!/usr/bin/env bash
# Trains weights and converts them to the format of the packaged weights.
#
#   recipes/scripts/train_weights.sh derain CLEAN_FOLDER STREAKS_FOLDER OUT
#   recipes/scripts/train_weights.sh denoise|deblur CLEAN_FOLDER OUT
#
# CLEAN_FOLDER holds clean photographs, STREAKS_FOLDER rendered rain (docs/synthesis.md). In OUT:
#   shards/ coarse/ fast/ four/   data and runs; an interrupted script resumes where it stopped
#   <task>.pt                     weights for one sampling step at t = 500, in bf16
#   <task>-4step.pt               weights for four sampling steps, trained from those
# Settings, from the environment (separated by spaces):
#   COARSE, FAST, FOUR  further arguments of each stage's command: KEY=VALUE of the recipe, such as
#                       FAST="fine.iterations=9000", or options, such as COARSE="--init derain"
# The last step, pack_weights.py, is printed but not run: it needs facts that the script does not
# know, such as scores (docs/models/README.md).
set -euo pipefail

usage() {
  sed -n '4,5s/^# *//p' "$0" >&2
  exit 2
}

task=${1:-}
case $task in
  derain) [ $# -eq 4 ] || usage; streaks=$3 out=$4 kind=rain ;;
  denoise) [ $# -eq 3 ] || usage; streaks= out=$3 kind=noise ;;
  deblur) [ $# -eq 3 ] || usage; streaks= out=$3 kind=blur ;;
  *) usage ;;
esac
clean=$2
here=$(cd "$(dirname "$0")/../.." && pwd)
data=()
[ -z "$streaks" ] || data=("data.streaks=$streaks")
short='fine.iterations=1050 fine.batches=[8,4,2] fine.switch_every=70 fine.cycles=5 fine.lr=4.0e-4 fine.periods=[{"length":1050,"floor":5.0e-6}]'
# split at spaces into arguments
read -r -a coarse <<<"${COARSE:-}"
read -r -a fast <<<"${FAST:-}"
read -r -a four <<<"${FOUR:-$short}"

# shellcheck source=recipes/scripts/stage.sh
. "$here/recipes/scripts/stage.sh"
c2fdft prepare "$clean" --synthesize "$kind" --clean-only --out "$out/shards"
stage coarse coarse.pt train-coarse --recipe "$task-small" --data "$out/shards" \
  ${data[@]+"${data[@]}"} ${coarse[@]+"${coarse[@]}"}
stage fast fine.pt train-fine --from "$out/coarse/coarse.pt" --data "$out/shards" \
  "sampling.grid=[500]" ${fast[@]+"${fast[@]}"}
stage four fine.pt train-fine --from "$out/fast/fine.pt" --data "$out/shards" \
  "sampling.grid=[999,750,500,250]" ${four[@]+"${four[@]}"}

for pair in "fast $task" "four $task-4step"; do
  read -r run name <<<"$pair"
  c2fdft convert "$out/$run/fine.pt" "$out/$name.pt" --half bf16 --ema-only --overwrite
  echo "score $out/$name.pt, write its facts into FACTS.json (docs/models/README.md), then:" \
    "python recipes/scripts/pack_weights.py $out/$name.pt --name $name --facts FACTS.json --into FOLDER"
done
