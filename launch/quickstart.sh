#!/usr/bin/env bash
# From a fresh checkout to a trained model: prepares the built-in German-English corpus, trains on it, decodes its test
# split autoregressively and in parallel, and prints a table. Finished steps are skipped.
#
#   ./launch/quickstart.sh [--workdir=runs/demo_deen] [--config.train.steps=500 --config.optimizer.warmup_steps=50 ...]
#
# The settings apply to preparation and training. --allow_changes resumes a run whose settings were others.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
start=$SECONDS
config=configs/demo_deen.py workdir=runs/demo_deen prepared=prepared/demo_deen settings=() changes=()
for argument in "$@"; do
  case "$argument" in
    --config.data.prepared=*) prepared=${argument#*=} settings+=("$argument") ;;
    --workdir=*) workdir=${argument#*=} ;;
    --allow_changes) changes=("$argument") ;;
    --config.*=* | --noconfig.*) settings+=("$argument") ;;
    *)
      echo "error: $argument: give --workdir=DIR, --config.key=value or --allow_changes" >&2
      exit 2
      ;;
  esac
done
source launch/environment.sh
make_environment requirements.txt

python -m janus_jax.data --config="$config" ${settings[@]+"${settings[@]}"}
python -m janus_jax.train --config="$config" --workdir="$workdir" --status_when_stopped=75 \
  ${changes[@]+"${changes[@]}"} ${settings[@]+"${settings[@]}"}
python -m benchmarks.quickstart --workdir="$workdir"
echo "total time: $(((SECONDS - start) / 60)) min $(((SECONDS - start) % 60)) s"
cat <<NEXT
next:
  source .venv/bin/activate
  echo "3 Kilogramm" | python -m janus_jax.decode --checkpoint=$workdir
  python -m janus_jax.data --config=configs/mine.py --write_sample
The model knows phrases like those of $prepared/text/test.de, and nothing else.
The last command prepares a sample where configs/mine.py expects your own text. docs/own_data.md goes on from there.
NEXT
