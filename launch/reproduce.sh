#!/usr/bin/env bash
# A translation task of the papers, from the original downloads to scores both ways.
#
#   ./launch/reproduce.sh iwslt14 downloads runs/iwslt14 [--preset=iwslt14_deen] [--config.train.steps=100000 ...]
#
# The first argument is iwslt14 (German to English), wmt14 (English to German) or wmt16 (English to Romanian). The second is
# the folder of the downloads, which `python -m janus_jax.data.translation --help` names. The third gets everything: text,
# prepared, run, average and scores.md. --preset names another preset of configs/mt.py; the default is the released recipe.
# --unchecked accepts downloads of other sizes. The settings apply to preparation and training.
#
# Finished files and steps are not done again: give the same command again after a stop.
set -euo pipefail
if [ $# -lt 3 ] || [[ "$1" == -* || "$2" == -* || "$3" == -* || -z "$1" || -z "$2" || -z "$3" ]]; then
  echo "error: give a task (iwslt14, wmt14 or wmt16), the folder of its downloads, and a folder for the results" >&2
  exit 2
fi
# `realpath -m` is not on every system.
absolute() { case "$1" in /*) printf '%s' "$1" ;; *) printf '%s' "$PWD/$1" ;; esac; }
corpus=$1 downloads=$(absolute "$2") out=$(absolute "$3")
case "$corpus" in
  iwslt14) preset=iwslt14_deen_released ;;
  wmt14) preset=wmt14_ende_released ;;
  wmt16) preset=wmt16_enro_released ;;
  *)
    echo "error: $corpus: give iwslt14, wmt14 or wmt16" >&2
    exit 2
    ;;
esac
settings=() unchecked=()
for argument in "${@:4}"; do
  case "$argument" in
    --preset=*) preset=${argument#*=} ;;
    --unchecked) unchecked=(--unchecked) ;;
    --config.*=*) settings+=("$argument") ;;
    *)
      echo "error: $argument: give --preset=NAME, --unchecked or --config.key=value" >&2
      exit 2
      ;;
  esac
done
if [[ ! "$preset" =~ ^${corpus}_([a-z][a-z])([a-z][a-z])(_|$) ]]; then
  echo "error: --preset=$preset: name a preset of configs/mt.py for $corpus, as ${corpus}_..." >&2
  exit 2
fi
source=${BASH_REMATCH[1]} target=${BASH_REMATCH[2]}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
make_environment requirements.txt

text=$out/text
python -m janus_jax.data.translation --corpus="$corpus" --downloads="$downloads" --output="$text" ${unchecked[@]+"${unchecked[@]}"}
config=(
  --config="configs/mt.py:$preset" --config.data.source=parallel --config.text.model_type=bpe
  --config.data.train="$text/train" --config.data.valid="$text/valid" --config.data.test="$text/test"
  --config.data.prepared="$out/prepared" --config.train.keep_last=5 ${settings[@]+"${settings[@]}"}
)
python -m janus_jax.data "${config[@]}"
python -m janus_jax.train "${config[@]}" --workdir="$out/run" --status_when_stopped=75

count=$(ls -d "$out/run/checkpoints"/[0-9]*/ | wc -l)
newest=$(ls -td "$out/run/checkpoints"/[0-9]*/ | head -n 1)
if [ ! -d "$out/average" ] || [ "$newest" -nt "$out/average" ]; then
  rm -rf "$out/average"
  python -m janus_jax.convert average --checkpoint="$out/run" --last=$((count < 5 ? count : 5)) --output="$out/average"
fi
# The searches of the papers; the number of passes is the preset's.
case "$preset" in
  *_released | *_masks) parallel=(--setting=nar --setting=nar:passes=1) ;;
  *) parallel=(--setting=ctc --setting=ctc:beam=20,rerank=ar) ;;
esac
if [ ! "$out/scores.md" -nt "$out/average" ]; then # absent, or of an older average
  python -m janus_jax.evaluate --checkpoint="$out/average" --source="$text/test.$source" --references="$text/test.$target" \
    --moses="$target" --plain_references="$text/test.plain.$target" \
    --setting=ar:beam=5 --setting=ar:beam=1 "${parallel[@]}" >"$out/scores.partial"
  mv "$out/scores.partial" "$out/scores.md"
fi
cat "$out/scores.md"
