#!/bin/sh
# Scores weights on test sets, and prints one Markdown table with the published results above them.
#
#   recipes/scripts/benchmark.sh WEIGHTS SET...
#
# A SET is a folder that holds degraded and clean images in a layout that `c2fdft prepare` knows, or
# SIDD's blocks; its name is the column's heading (Rain100L, Test100, GoPro, SIDD ...), so no two may
# have the same. Settings, from the environment:
#   PROTOCOL  derain (default), derain-matlab, deblur, denoise, rgb, y, levin
#   OUT       folder of the results [benchmark]
#   NAME      name of the weights' row in the table [the name of the file]
#   PYTHON    the Python that makes the table [python3]
#   EVAL      further arguments for `c2fdft eval`, such as "--grid 999,500" or "--self-ensemble"
# Writes $OUT/table.md, $OUT/table.csv and, for each set, $OUT/<set>/eval.json.
set -eu
if [ $# -lt 2 ]; then
  echo "usage: recipes/scripts/benchmark.sh WEIGHTS SET..." >&2
  exit 2
fi
weights=$1
shift
protocol=${PROTOCOL:-derain}
out=${OUT:-benchmark}
name=${NAME:-$(basename "$weights")}
python=${PYTHON:-python3}

# Only an absolute path shows the name of `.` and of `..`.
heading() {
  if [ -d "$1" ]; then basename "$(CDPATH='' cd -- "$1" && pwd)"; else basename -- "$1"; fi
}

twice=$(for set in "$@"; do heading "$set"; done | sort | uniq -d | head -n 1)
if [ -n "$twice" ]; then
  echo "error: two sets have the name $twice, and would share the folder $out/$twice" >&2
  echo "hint: score them separately, with another OUT, or make a link of another name to one" >&2
  exit 2
fi

for set in "$@"; do
  column=$(heading "$set")
  place=$out/$column
  mkdir -p "$place"
  # shellcheck disable=SC2086  # EVAL holds several arguments
  c2fdft eval --weights "$weights" "$set" --protocol "$protocol" ${EVAL:-} --json > "$place/eval.json"
  shift
  set -- "$@" "$column"
done

"$python" - "$protocol" "$out" "$name" "$@" <<'PYTHON'
import csv, json, pathlib, sys

protocol, out, name, *columns = sys.argv[1:]
out = pathlib.Path(out)
PUBLISHED = {
    "derain": {
        "PReNet": {"Test100": "24.81/.851", "Rain100H": "26.77/.858", "Rain100L": "32.44/.950",
                   "Test2800": "31.75/.916"},
        "MPRNet": {"Test100": "30.27/.897", "Rain100H": "30.41/.890", "Rain100L": "36.40/.965",
                   "Test2800": "33.64/.938"},
        "Restormer": {"Test100": "32.00/.923", "Rain100H": "31.46/.904", "Rain100L": "38.99/.978",
                      "Test2800": "34.18/.944"},
        "IR-SDE (retrained on Rain13K)": {"Test100": "26.74/.834", "Rain100H": "20.79/.699",
                                          "Rain100L": "30.83/.912", "Test2800": "30.42/.891"},
        "C2F-DFT (published)": {"Test100": "31.38/.921", "Rain100H": "31.62/.909",
                                "Rain100L": "39.03/.980", "Test2800": "34.03/.944"},
    },
    "deblur": {
        "NAFNet": {"GoPro": "33.71/.967", "RealBlur-R": "35.97/.951", "RealBlur-J": "28.31/.856"},
        "Restormer": {"GoPro": "32.92/.961", "RealBlur-R": "36.19/.957", "RealBlur-J": "28.96/.879"},
        "IR-SDE": {"GoPro": "30.70/.901", "RealBlur-R": "33.96/.918", "RealBlur-J": "24.21/.729"},
        "C2F-DFT (published)": {"GoPro": "31.96/.928", "RealBlur-R": "36.34/.957",
                                "RealBlur-J": "28.90/.876"},
    },
    "denoise": {
        "NAFNet": {"SIDD": "40.30/.961", "DND": "38.41/.943"},
        "MIRNet": {"SIDD": "39.72/.959", "DND": "39.88/.956"},
        "C2F-DFT (published)": {"SIDD": "39.84/.960", "DND": "39.95/.955"},
    },
}


def key(text):
    return "".join(c for c in text.lower() if c.isalnum())


def show(mean):
    if mean is None:
        return "-"
    psnr = "inf" if mean["psnr"] is None else f"{mean['psnr']:.2f}"
    return f"{psnr}/{mean['ssim']:.3f}".replace("/0.", "/.")


results = {c: json.loads((out / c / "eval.json").read_text()) for c in columns}
rows = []
for method, published in PUBLISHED.get(protocol, {}).items():
    by_key = {key(column): value for column, value in published.items()}
    cells = [by_key.get(key(column), "-") for column in columns]
    if any(cell != "-" for cell in cells):
        rows.append([method, *cells, "-"])
inputs = [(r["degraded"] or {}).get("mean") for r in results.values()]
for label, means in (("the inputs", inputs), (name, [r["mean"] for r in results.values()])):
    average = None
    if all(mean is not None and mean["psnr"] is not None for mean in means):
        average = {k: sum(mean[k] for mean in means) / len(means) for k in ("psnr", "ssim")}
    rows.append([label, *map(show, means), show(average)])
header = [f"{protocol} (PSNR/SSIM)", *(f"{c} ({len(r['images'])})" for c, r in results.items()),
          "average"]
lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
(out / "table.md").write_text("\n".join(lines) + "\n")
with (out / "table.csv").open("w", newline="") as file:
    csv.writer(file, lineterminator="\n").writerows([header, *rows])
print("\n".join(lines))
PYTHON
