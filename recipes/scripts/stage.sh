# shellcheck shell=bash
# To be sourced by scripts that train in several stages.
#
#   stage NAME FILE COMMAND ARGUMENTS...
#
# runs `c2fdft COMMAND` into $out/NAME, or resumes the run there; does nothing if $out/NAME/FILE exists.
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
