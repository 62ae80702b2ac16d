#!/usr/bin/env bash
# Training on all workers of a Cloud TPU slice, from your own machine. JAX finds the workers by the slice's metadata.
#
#   ./launch/tpu_pod.sh NAME ZONE --config=configs/wmt14_ende.py --workdir=/mnt/data/runs/wmt14_ende
#   ./launch/tpu_pod.sh --setup NAME ZONE                 # once: copies this checkout to every worker and installs it
#   ./launch/tpu_pod.sh --dry_run NAME ZONE --config=...  # prints the command of the workers and runs nothing
#
# The work directory and the prepared data lie on a file system that all workers have mounted (Filestore, or a bucket by gcsfuse): here
# /mnt/data. The same command continues a run that stopped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mode=train
case "${1-}" in
  --setup) mode=setup && shift ;;
  --dry_run) mode=dry_run && shift ;;
esac
if [ $# -lt 2 ] || [[ "$1" == --* || "$2" == --* ]]; then
  echo "error: usage: ${0##*/} [--setup | --dry_run] NAME ZONE [ARGUMENT ...]; NAME and ZONE are those of the TPU VM" >&2
  exit 2
fi
name=$1 zone=$2
shift 2

on_all_workers() { gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"; }

if [ "$mode" = setup ]; then
  archive=$(mktemp --suffix=.tar.gz)
  trap 'rm -f "$archive"' EXIT
  git archive --prefix=janus_jax/ --output="$archive" HEAD
  gcloud compute tpus tpu-vm scp "$archive" "$name:/tmp/janus_jax.tar.gz" --zone="$zone" --worker=all
  on_all_workers 'rm -rf ~/janus_jax && tar xzf /tmp/janus_jax.tar.gz -C ~ && cd ~/janus_jax && source launch/environment.sh &&
    make_environment requirements.txt && pip install --quiet "jax[tpu]"'
  exit
fi

# JANUS_JAX_DISTRIBUTED has JAX look for the other workers, which nothing in the environment of a TPU VM tells of.
command="cd ~/janus_jax && JANUS_JAX_DISTRIBUTED=1 .venv/bin/python -m janus_jax.train$(printf ' %q' "$@")"
if [ "$mode" = dry_run ]; then
  echo "$command"
else
  on_all_workers "$command"
fi
