#!/usr/bin/env bash
# Runs the tests of the compiled CPU kernels with AddressSanitizer and UndefinedBehaviorSanitizer, which
# notice a read or write outside of a buffer and undefined arithmetic.
#
#   recipes/scripts/check_kernels.sh
#
# For each instruction set in turn: all that this machine has, AVX2, and what every x86-64 has. On another
# processor only the first. Needs GCC and the packages of the tests; takes five to eight minutes.
# Exits with 1 if a test fails or a sanitizer reports something.
# Settings, from the environment:
#   PYTHON  the Python that c2fdft is installed in [python3]
set -euo pipefail
[ $# -eq 0 ] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2; }
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
gcc=$(command -v gcc)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

sets=("")
if [ "$(uname -m)" = x86_64 ]; then sets+=("-mno-avx512f" "-march=x86-64"); fi
for set in "${sets[@]}"; do
  echo "instructions: ${set:-all of this machine}"
  # the program compiles with the first cc in PATH, into the cache folder
  mkdir -p "$work/bin$set" "$work/cache$set"
  printf '#!/bin/sh\nexec "%s" "$@" %s -fsanitize=address,undefined -fno-omit-frame-pointer -g\n' "$gcc" "$set" \
    >"$work/bin$set/cc"
  chmod +x "$work/bin$set/cc"
  # -march=native of a processor with bfloat16 is needed for its kernels
  kinds=()
  if [ -n "$set" ]; then kinds=(-k "not bf16"); fi
  # -s: what a sanitizer prints is not captured
  PATH=$work/bin$set:$PATH XDG_CACHE_HOME=$work/cache$set ASAN_OPTIONS=detect_leaks=0 \
    UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
    LD_PRELOAD="$("$gcc" -print-file-name=libasan.so) $("$gcc" -print-file-name=libubsan.so)" \
    "$python" -m pytest -q -s -n 0 -p no:cacheprovider ${kinds[@]+"${kinds[@]}"} \
    tests/execution/native tests/execution/test_strips.py tests/execution/test_block_gradients.py
done
