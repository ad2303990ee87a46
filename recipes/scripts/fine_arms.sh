#!/usr/bin/env bash
# Compares settings of the fine stage: trainings (arms) of equal time from one coarse checkpoint of the
# tiny network, each with one setting changed, scored on a test set that none of them was trained on.
#
#   recipes/scripts/fine_arms.sh CLEAN STREAKS TEST OUT [ARM...]    ARMs: see below; all if none is named
#
# CLEAN holds clean photographs, STREAKS rendered rain, TEST pairs in a published layout. Results that are
# already in OUT are kept; the Markdown table is printed at the end. Several processes may share OUT if
# the coarse stage is finished and each names different arms. Settings, from the environment:
#   SECONDS_EACH  time of one arm [300]; a few real steps (--dry-run) give its number of iterations
#   SEEDS         seeds of each arm ["1 2"]
#   COARSE        iterations of the coarse stage [840]
#   PYTHON        the Python that runs the script's own calculations [python3]
# Arms. Unless stated otherwise the learning rate is 3e-4, L1 has weight 1, gradients are clipped to norm 1:
#   base         4 sampling steps (999, 666, 333, 0), 0.84 (1 - MS-SSIM) + L1, EMA start, 32/64/96 px
#   paper        the paper's weight of L1, 0.16
#   as_released  the released loss: MS-SSIM with a range of 255 on [-1, 1]
#   raw          starts from the raw coarse weights
#   fixed        64 px patches throughout
#   eight        8 sampling steps
#   three        3 sampling steps: 999, 666, 333
#   two          2 sampling steps: 999, 500
#   one          1 sampling step: 500
#   one_fast     1 sampling step, at a learning rate of 8e-4
#   base_fast    as base, at a learning rate of 8e-4
#   one_l1       1 sampling step, L1 alone, at a learning rate of 8e-4
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

words() {  # words ARM: put the overrides of an arm into the array `changed`
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

# timed_as ARM: the arm whose steps take as long as those of ARM
timed_as() { case $1 in base_fast | paper | as_released | raw) echo base ;; one_fast) echo one ;; *) echo "$1" ;; esac; }

for round in 1 2; do  # time a step of each arm in two rounds, of which the faster counts
  for arm in "${arms[@]}"; do
    arm=$(timed_as "$arm")
    [ -f "$out/$arm.plan$round" ] && continue
    words "$arm"
    c2fdft train-fine "${start[@]}" "${changed[@]}" --out "$out/plan" --dry-run --json > "$out/$arm.part"
    mv "$out/$arm.part" "$out/$arm.plan$round"
  done
done

iterations() {  # iterations ARM: how many take SECONDS_EACH, a multiple of six (two cycles of three sizes)
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
