# shellcheck shell=bash
# For scripts that train in several stages, to be sourced.
#
#   stage NAME FILE COMMAND WORDS...
#
# trains into $out/NAME, or goes on with what was begun there, unless FILE is in it already.
stage() {
  local run=$out/$1 file=$out/$1/$2 command=$3
  shift 3
  [ -f "$file" ] && return
  if [ -f "$run/state.pt" ]; then
    c2fdft "$command" --resume --out "$run"
  else
    c2fdft "$command" --out "$run" "$@"
  fi
}
