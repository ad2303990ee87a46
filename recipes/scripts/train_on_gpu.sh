#!/usr/bin/env bash
# Trains weights for a number of minutes on a GPU, for as many iterations as that GPU manages.
#
#   recipes/scripts/train_on_gpu.sh NAME FROM RECIPE MINUTES DATA OUT [KEY=VALUE...]
#   recipes/scripts/train_on_gpu.sh derain derain derain-heavy 30 data out 'fine.patches=[160]' 'fine.batches=[16]'
#
# FROM is a checkpoint or the name of packaged weights. DATA holds clean/ (photographs) and, for rain,
# streaks/, or it is a folder of pairs; the shards are written into it. A trial run of TRIAL minutes
# (0.5) measures images per second, the loader included. The learning rate then falls from LR (5e-4)
# along one cosine that ends when the time is up. OUT/NAME.pt is the result in the packaged format; it
# may be FROM of the next run. An existing run of the same name in OUT is never replaced. Further
# settings, from the environment: VAL, the number of validation images [8]; DEVICE [cuda]; C2FDFT, the
# command [c2fdft].
set -euo pipefail
[ $# -ge 6 ] || { sed -n '4p' "$0" | tr -d '#' >&2; exit 2; }
name=$1 from=$2 recipe=$3 minutes=$4 data=$5 out=$6
shift 6
lr=${LR:-5e-4} trial=${TRIAL:-0.5} c2fdft=${C2FDFT:-c2fdft} device=${DEVICE:-cuda}
kind=rain
case $recipe in *blur*) kind=blur ;; *noise*) kind=noise ;; esac
pack=("$data/clean" --synthesize "$kind" --clean-only)
if [ ! -d "$data/clean" ]; then
  kind=pairs pack=("$data")
  set -- data.synthesize=null "$@"
elif [ "$kind" = rain ]; then
  set -- "data.streaks=$data/streaks" "$@"
fi

began=$(date +%s)
mkdir -p "$out"
shards=$data/shards-$kind
if [ ! -f "$shards/shards.json" ]; then
  $c2fdft prepare "${pack[@]}" --val "${VAL:-8}" --out "$shards"
fi

train() {  # train MINUTES RUN KEY=VALUE...: stops after MINUTES (exit code 143) and keeps its state
  local limit=$1 run=$2
  shift 2
  $c2fdft train-fine --from "$from" --recipe "$recipe" --data "$shards" --out "$run" --device "$device" \
    --max-time "$limit" "$@" || [ $? -eq 143 ]
}

run=$out/$name-run
if [ -e "$run" ]; then
  echo "error: $run already exists: choose another NAME, or resume it with c2fdft train-fine --resume --out $run" >&2
  exit 2
fi
rm -rf "$run-trial"
train "$trial" "$run-trial" "$@" "fine.lr=$lr" fine.iterations=1000000 "fine.periods=[{length: 1000000, floor: 0}]" \
  fine.cycles=100000 train.log_every=10 train.validate_every=1000000 train.save_every=1000000
left=$(python3 -c "print(round(max($trial, $minutes - ($(date +%s) - $began) / 60), 3))")
iterations=$(python3 - "$run-trial/metrics.csv" "$left" <<'PY'
import csv, statistics, sys
with open(sys.argv[1], newline="") as file:
    rows = list(csv.DictReader(file))
if not rows:
    sys.exit("error: the trial run ended within 10 iterations: set TRIAL to more minutes")
seconds = {}
for row in rows[1:] or rows:
    seconds.setdefault(row["patch"], []).append(float(row["batch"]) / float(row["images_per_second"]))
each = statistics.fmean(statistics.median(times[len(times) // 2 :]) for times in seconds.values())
# 55 of 60 seconds: a twelfth of the time is for starting, saving and validating
print(max(10, int(float(sys.argv[2]) * 55 / each)))
PY
)
rm -rf "$run-trial"
echo "$name: $iterations iterations in $left minutes"
train "$left" "$run" "$@" "fine.lr=$lr" "fine.iterations=$iterations" "fine.periods=[{length: $iterations, floor: 1.0e-6}]" \
  fine.cycles=100000 train.validate_every="$iterations" train.save_every="$((iterations / 2 + 1))" train.log_every=50
last=$run/fine.pt
[ -f "$last" ] || last=$run/checkpoints/last.pt
$c2fdft convert "$last" "$out/$name.pt" --half bf16 --ema-only --overwrite
cp "$run/metrics.csv" "$out/$name.csv"
