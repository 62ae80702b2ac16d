#!/usr/bin/env bash
# Fine-tunes a model on the tasks of GLGE, decodes both ways, and prints the scores beside published ones.
#
#   ./launch/glge.sh data/glge/easy runs/bart_base runs/glge [--config.train.steps=10000 ...]
#
# The first folder is a version of the benchmark, the second a BART or a run to go on from ("scratch": none), and the
# third gets the results. Tasks whose folder is not there are skipped. Finished tasks, files and steps are not done again:
# give the same command again after a stop. The settings apply to the preparation and the training of all tasks.
#
# Of each task, the third folder gets: TASK/prepared and TASK/run, the checkpoints; ar/TASK.VERSION.test and .dev, the
# predictions by the benchmark's search; nar/..., those in parallel, in 10 passes over 3 lengths. scores.md is the table.
set -euo pipefail
if [ $# -lt 3 ] || [[ "$1" == --* || "$2" == --* || "$3" == --* || -z "$1" || -z "$2" || -z "$3" ]]; then
  echo "error: give the benchmark's folder, a checkpoint (or scratch), and a folder for the results" >&2
  exit 2
fi
# `realpath -m` is not on every system.
absolute() { case "$1" in /*) printf '%s' "$1" ;; *) printf '%s' "$PWD/$1" ;; esac; }
data=$(absolute "$1") checkpoint=$2 out=$(absolute "$3") settings=("${@:4}")
if [ -d "$data" ]; then data=$(cd "$data" && pwd -P); fi  # the name of the folder is that of the version
if [ "$checkpoint" != scratch ]; then checkpoint=$(absolute "$checkpoint"); fi
for setting in ${settings[@]+"${settings[@]}"}; do
  if [[ "$setting" != --config.*=* ]]; then
    echo "error: $setting: give --config.key=value" >&2
    exit 2
  fi
done
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tasks=()
for task in cnndm gigaword xsum msnews squadqg msqg coqa personachat; do
  folder=$data/${task}_data/org_data
  if [ ! -d "$folder" ]; then
    echo "skipped: $task, since $folder is not there"
    continue
  fi
  for name in train.src train.tgt dev.src dev.tgt test.src; do
    if [ ! -f "$folder/$name" ]; then
      echo "error: $folder/$name is missing; put the benchmark's file there, or remove the folder to skip the task" >&2
      exit 2
    fi
  done
  tasks+=("$task")
done
if [ ${#tasks[@]} = 0 ]; then
  echo "error: $data: no folder TASK_data/org_data; name a version of the benchmark, as data/glge/easy" >&2
  exit 2
fi
source launch/environment.sh
make_environment requirements.txt requirements-glge.txt

mkdir -p "$out/ar" "$out/nar"
for task in "${tasks[@]}"; do
  folder=$data/${task}_data/org_data
  config=(
    --config="configs/glge.py:$task"
    --config.data.train="$folder/train" --config.data.valid="$folder/dev" --config.data.prepared="$out/$task/prepared"
  )
  if [ "$checkpoint" != scratch ]; then
    config[0]+=_bart
    config+=(--config.init_from="$checkpoint")
  fi
  config+=(${settings[@]+"${settings[@]}"})
  python -m janus_jax.data "${config[@]}"
  python -m janus_jax.train "${config[@]}" --workdir="$out/$task/run" --status_when_stopped=75
  newest=$(ls -td "$out/$task/run/checkpoints"/[0-9]*/ | head -n 1)
  for split in dev test; do
    name=$task.$(basename "$data").$split
    for mode in "ar" "nar --passes=10 --length_beam=3"; do
      file=$out/${mode%% *}/$name
      if [ ! "$file" -nt "$newest" ]; then # absent, or by an older checkpoint
        # shellcheck disable=SC2086 # the words of $mode are flags
        python -m janus_jax.decode --checkpoint="$out/$task/run" --mode=$mode --input="$folder/$split.src" --output="$file"
      fi
    done
  done
done
python -m janus_jax.evaluate --glge="$data" --predictions="$out/ar" --predictions="$out/nar" >"$out/scores.partial"
mv "$out/scores.partial" "$out/scores.md"
cat "$out/scores.md"
