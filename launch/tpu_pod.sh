#!/usr/bin/env bash
# Trains on all workers of a Cloud TPU slice, from your machine. JAX reads the workers from the metadata of the slice.
#
#   ./launch/tpu_pod.sh NAME ZONE --config=configs/mt.py:wmt14_ende --workdir=/mnt/data/runs/wmt14_ende \
#     --config.data.prepared=/mnt/data/prepared/wmt14_ende
#   ./launch/tpu_pod.sh --setup NAME ZONE                 # copies the last commit to every worker, and installs it
#   ./launch/tpu_pod.sh --dry_run NAME ZONE --config=...  # prints the command of the workers and runs nothing
#
# Set up once, and again after each commit that the workers need. Prepare the data first, once, on one worker. The workdir
# and the prepared data must be on a file system that all workers have mounted, here /mnt/data: Filestore, or a bucket with
# hierarchical namespace, mounted by gcsfuse. (In other buckets renames are not atomic, and a rename commits a checkpoint.)
# The workers need Python 3.11 or 3.12. The run continues when this connection ends: the same command shows its log again,
# or resumes a run that stopped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mode=train
case "${1-}" in
  --setup) mode=setup && shift ;;
  --dry_run) mode=dry_run && shift ;;
esac
if [ $# -lt 2 ] || [[ "$1" == --* || "$2" == --* ]]; then
  echo "error: usage: ${0##*/} [--setup | --dry_run] NAME ZONE [ARGUMENT ...];" \
    "NAME and ZONE are those of the TPU VM" >&2
  exit 2
fi
name=$1 zone=$2
shift 2

on_all_workers() { gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"; }

if [ "$mode" = setup ]; then
  folder=$(mktemp -d)
  archive=$folder/janus_jax.tar.gz
  trap 'rm -rf "$folder"' EXIT
  git archive --prefix=janus_jax/ --output="$archive" HEAD
  gcloud compute tpus tpu-vm scp "$archive" "$name:/tmp/janus_jax.tar.gz" --zone="$zone" --worker=all
  # Extracts into an older checkout: its runs and data stay.
  on_all_workers 'tar xzf /tmp/janus_jax.tar.gz -C ~ && cd ~/janus_jax && source launch/environment.sh &&
    make_environment requirements.txt && pip install --quiet -r requirements.txt "jax[tpu]"'
  exit
fi

# JANUS_JAX_DISTRIBUTED makes JAX look for the other workers, since no variable of a TPU VM names them.
train="JANUS_JAX_DISTRIBUTED=1 .venv/bin/python -m janus_jax.train$(printf ' %q' "$@")"
command="cd ~/janus_jax || exit
if ! kill -0 \"\$(cat train.pid 2>/dev/null)\" 2>/dev/null; then
  setsid nohup env $train >>train.log 2>&1 </dev/null &
  echo \$! >train.pid
fi
tail -n 50 --pid=\"\$(cat train.pid)\" -F train.log
true" # the shell must outlive tail: it reaps its child, and tail waits for the child to end
if [ "$mode" = dry_run ]; then
  echo "$command"
else
  on_all_workers "$command"
fi
