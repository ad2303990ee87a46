#!/usr/bin/env bash
# What matters in the fine stage: arms of equal time from one coarse checkpoint of the tiny network, each
# with one thing changed, scored on a test set that none of them has seen.
#
#   recipes/scripts/fine_arms.sh CLEAN STREAKS TEST OUT [ARM...]    ARMs: see below; all if none is named
#
# CLEAN holds clean photographs, STREAKS rendered rain, TEST pairs in a published layout. What is in OUT
# already is not made again; the Markdown table comes last. Several at once may share OUT when each names
# other arms and the coarse stage is done. SECONDS_EACH [300] is the time of one arm: a few
# real steps (--dry-run) tell how many iterations it holds. SEEDS ["1 2"]; COARSE [840] iterations.
#   base         4 calls (999, 666, 333, 0), 0.84 (1 - MS-SSIM) + L1, EMA start, 32/64/96 px
#   paper        as in the paper, 0.16 L1
#   as_released  the released loss: MS-SSIM with a range of 255 on [-1, 1]
#   raw          starts from the raw coarse weights
#   fixed        64 px patches all along
#   eight        8 calls
#   three        3 calls: 999, 666, 333
#   two          2 calls: 999, 500
#   one          1 call: 500
#   one_fast     1 call, at a rate of 8e-4
#   base_fast    as base, at a rate of 8e-4
#   one_l1       1 call, L1 alone, at a rate of 8e-4
# Else L1 counts in full in all arms but `paper`, the rate is 3e-4; gradients are clipped to norm 1.
set -euo pipefail

if [ $# -lt 4 ]; then
  sed -n '5s/^# *//p' "$0" >&2
  exit 2
fi
clean=$1 streaks=$2 test=$3 out=$4
shift 4
arms=("$@")
[ ${#arms[@]} -gt 0 ] || arms=(base paper as_released raw fixed eight three two one one_fast base_fast one_l1)
read -r -a seeds <<<"${SEEDS:-1 2}"
each=${SECONDS_EACH:-300} n=${COARSE:-840}
python=${PYTHON:-python3}
data=(--data "$out/shards" "data.streaks=$streaks" train.validate_every=1000000)
# shellcheck source=recipes/scripts/stage.sh
. "$(dirname "$0")/stage.sh"

words() {  # words ARM: what it changes, in ${changed[@]}
  changed=("sampling.grid=[999,666,333,0]")
  case $1 in
    base) ;;
    base_fast) changed+=(fine.lr=8.0e-4) ;;
    paper) changed+=(fine.l1_weight=0.16) ;;
    as_released) changed+=(fine.ssim=as_released) ;;
    raw) changed+=(fine.start_from=raw) ;;
    fixed) changed+=("fine.patches=[64]" "fine.batches=[6]") ;;
    eight) changed=("sampling.grid=[999,856,714,571,428,285,143,0]") ;;
    three) changed=("sampling.grid=[999,666,333]") ;;
    two) changed=("sampling.grid=[999,500]") ;;
    one) changed=("sampling.grid=[500]") ;;
    one_fast) changed=("sampling.grid=[500]" fine.lr=8.0e-4) ;;
    one_l1) changed=("sampling.grid=[500]" fine.lr=8.0e-4 fine.ssim=none) ;;
    *) echo "no such arm: $1" >&2; exit 2 ;;
  esac
  changed+=("${data[@]}")
}

for arm in "${arms[@]}"; do words "$arm"; done
c2fdft prepare "$clean" --synthesize rain --clean-only --streaks "$streaks" --out "$out/shards"
stage coarse coarse.pt train-coarse --recipe tiny "${data[@]}" data.synthesize=rain \
  train.clip_norm=null coarse.lr=6.0e-4 coarse.iterations="$n" coarse.switch_every=$((n / 6)) coarse.cycles=2 \
  "coarse.periods=[{\"length\":$n,\"floor\":6.0e-5}]"
start=(--from "$out/coarse/coarse.pt" "fine.patches=[32,64,96]" "fine.batches=[16,6,2]"
  fine.ssim=paper fine.l1_weight=1.0 fine.lr=3.0e-4 train.clip_norm=1.0)

# timed_as ARM: the arm whose steps tell what this one's take
timed_as() { case $1 in base_fast | paper | as_released | raw) echo base ;; one_fast) echo one ;; *) echo "$1" ;; esac; }

for round in 1 2; do  # how many seconds a step takes: of two rounds the faster counts
  for arm in "${arms[@]}"; do
    arm=$(timed_as "$arm")
    [ -f "$out/$arm.plan$round" ] && continue
    words "$arm"
    c2fdft train-fine "${start[@]}" "${changed[@]}" --out "$out/plan" --dry-run --json > "$out/$arm.part"
    mv "$out/$arm.part" "$out/$arm.plan$round"
  done
done

iterations() {  # iterations ARM: how many hold that time, a multiple of the six stages
  "$python" - "$each" "$out/$(timed_as "$1")".plan[12] <<'PYTHON'
import json, pathlib, statistics, sys

plans = [json.loads(pathlib.Path(path).read_text()) for path in sys.argv[2:]]
step = min(statistics.mean(s["seconds_per_step"] for s in plan["stages"]) for plan in plans)
print(6 * max(1, round(float(sys.argv[1]) / step / 6)))
PYTHON
}

for seed in "${seeds[@]}"; do
  for arm in "${arms[@]}"; do
    name=$arm-$seed
    [ -f "$out/$name.json" ] && continue
    words "$arm"
    [ -f "$out/$arm.iterations" ] || iterations "$arm" > "$out/$arm.iterations"
    n=$(<"$out/$arm.iterations")
    stage "$name" fine.pt train-fine "${start[@]}" "${changed[@]}" --seed "$seed" \
      fine.iterations="$n" fine.switch_every=$((n / 6)) "fine.periods=[{\"length\":$n,\"floor\":0.0}]"
    c2fdft eval --weights "$out/$name/fine.pt" "$test" --protocol derain --json > "$out/$name.json.part"
    mv "$out/$name.json.part" "$out/$name.json"
  done
done

"$python" - "$out" "${seeds[*]}" "${arms[@]}" <<'PYTHON'
import json, pathlib, statistics, sys

out, seeds, *arms = sys.argv[1:]
print("| arm | iterations | PSNR, mean | each seed | SSIM, mean |\n|---|---|---|---|---|")
for arm in arms:
    scores = [
        json.loads(pathlib.Path(out, f"{arm}-{seed}.json").read_text())["mean"]
        for seed in seeds.split()
    ]
    psnr = [score["psnr"] for score in scores]
    ssim = statistics.mean(score["ssim"] for score in scores)
    count = pathlib.Path(out, f"{arm}.iterations").read_text().strip()
    each = ", ".join(f"{value:.2f}" for value in psnr)
    print(f"| {arm} | {count} | {statistics.mean(psnr):.2f} | {each} | {ssim:.3f} |")
PYTHON
