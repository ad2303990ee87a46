#!/usr/bin/env bash
# Measures what raises the score: short trainings (arms) from one coarse checkpoint, each with one
# setting changed, scored on a test set that none of them was trained on.
#
#   recipes/scripts/trials.sh CLEAN STREAKS TEST OUT [ARM...]      ARMs: see below; all if none is named
#
# CLEAN holds clean photographs, STREAKS rendered rain, TEST pairs in a published layout. Results that are
# already in OUT are kept; the Markdown table is printed at the end. Settings, from the environment:
#   BUDGET  a whole number that multiplies all iterations [1]
#   PYTHON  the Python that prints the table [python3]
# Arms:
#   base    480 iterations of L1 with one sampling step at t = 500, 64 and 96 px
#   long    twice the iterations
#   large   128 and 192 px, as many pixels in a batch
#   rain    streak masks as rendered: not rotated, stretched or scaled in strength
#   wide    dim 32 instead of 24, 360 iterations: takes as long as base
#   top     two blocks at level 1 instead of one, 330 iterations: takes as long as base
#   deep    six blocks at level 4 instead of three, 430 iterations: takes as long as base
#   ssim    0.84 (1 - MS-SSIM) + 0.16 L1
set -euo pipefail

if [ $# -lt 4 ]; then
  sed -n '4,5s/^# *//p' "$0" >&2
  exit 2
fi
clean=$1 streaks=$2 test=$3 out=$4
shift 4
arms=("$@")
[ ${#arms[@]} -gt 0 ] || arms=(base long large rain wide top deep ssim)
budget=${BUDGET:-1}
data=(--data "$out/shards" "data.streaks=$streaks" data.line_patterns=0 train.validate_every=1000000)

# periods N FLOOR: the whole run on one cosine
periods() { echo "[{\"length\":$1,\"floor\":$2}]"; }

# shellcheck source=recipes/scripts/stage.sh
. "$(dirname "$0")/stage.sh"

coarse() {  # coarse NAME OVERRIDES...
  local name=$1 n=$((240 * budget))
  shift
  stage "$name" coarse.pt train-coarse --recipe derain-small "${data[@]}" \
    coarse.iterations=$n coarse.switch_every=$((n / 6)) coarse.cycles=2 \
    "coarse.periods=$(periods $n 1.0e-4)" "$@"
}

fine() {  # fine ARM COARSE ITERATIONS OVERRIDES...
  local arm=$1 from=$2 n=$(($3 * budget))
  shift 3
  stage "$arm" fine.pt train-fine --from "$out/$from/coarse.pt" "${data[@]}" \
    "sampling.grid=[500]" train.ema_decay=0.99 \
    fine.iterations=$n fine.cycles=4 fine.switch_every=$((n / 8)) \
    "fine.patches=[64,96]" "fine.batches=[16,8]" "fine.periods=$(periods $n 2.0e-5)" "$@"
}

for arm in "${arms[@]}"; do
  case " base long large rain wide top deep ssim " in *" $arm "*) ;; *) echo "no such arm: $arm" >&2; exit 2 ;; esac
done
c2fdft prepare "$clean" --synthesize rain --clean-only --streaks "$streaks" --out "$out/shards"
for arm in "${arms[@]}"; do
  case $arm in
    wide) coarse coarse32 network.dim=32 ;;
    top) coarse coarse-top "network.blocks=[2,2,2,3]" ;;
    deep) coarse coarse-deep "network.blocks=[1,2,2,6]" ;;
    *) coarse coarse24 ;;
  esac
  case $arm in
    base) fine base coarse24 480 ;;
    long) fine long coarse24 960 ;;
    large) fine large coarse24 480 "fine.patches=[128,192]" "fine.batches=[4,2]" ;;
    rain) fine rain coarse24 480 data.synthesis.turn=0 "data.synthesis.across=[1.0,1.0]" \
      "data.synthesis.along=[1.0,1.0]" "data.synthesis.strength=[1.0,1.0]" ;;
    wide) fine wide coarse32 360 ;;
    top) fine top coarse-top 330 ;;
    deep) fine deep coarse-deep 430 ;;
    ssim) fine ssim coarse24 480 fine.ssim=paper fine.l1_weight=0.16 ;;
  esac
  [ -f "$out/$arm.json" ] || {
    c2fdft eval --weights "$out/$arm/fine.pt" "$test" --protocol derain --json > "$out/$arm.json.part"
    mv "$out/$arm.json.part" "$out/$arm.json"
  }
done

"${PYTHON:-python3}" - "$out" "${arms[@]}" <<'PYTHON'
import json, pathlib, sys

out, *arms = sys.argv[1:]
print("| arm | PSNR | SSIM |\n|---|---|---|")
for arm in arms:
    mean = json.loads(pathlib.Path(out, f"{arm}.json").read_text())["mean"]
    print(f"| {arm} | {mean['psnr']:.2f} | {mean['ssim']:.3f} |")
PYTHON
