#!/usr/bin/env bash
# Runs one command as n processes on one machine. They communicate over loopback, like the hosts of a pod.
#
#   ./launch/local_processes.sh 2 python -m janus_jax.train --config=configs/demo_deen.py --workdir=runs/demo_deen
#
# Each process gets some of the cores, and one GPU if there are at least n. Lines of process i begin with [i]. SIGTERM
# and Ctrl-C send SIGTERM to all processes: the run saves and ends. The exit status is that of the first process in
# order that failed, or 0.
set -euo pipefail
if [[ ! "${1-}" =~ ^[1-9][0-9]*$ || $# -lt 2 ]]; then
  echo "error: usage: ${0##*/} PROCESSES COMMAND [ARGUMENT ...]" >&2
  exit 2
fi
processes=$1
shift

free_port() {
  local port tries
  for ((tries = 0; tries < 50; tries++)); do
    port=$((20000 + RANDOM % 12000))
    if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
      echo "$port"
      return
    fi
  done
  echo "error: no free port was found" >&2
  return 1
}

gpus=$(nvidia-smi -L 2>/dev/null | wc -l || true)
JAX_COORDINATOR_ADDRESS="127.0.0.1:${PORT:-$(free_port)}"
export JAX_COORDINATOR_ADDRESS JAX_NUM_PROCESSES=$processes
children=()
trap 'kill -s TERM "${children[@]}" 2>/dev/null || true' TERM INT

for ((i = 0; i < processes; i++)); do
  (
    # The child is the command itself (exec), so that it gets the signal. Ctrl-C reaches it as SIGTERM, see above.
    trap '' INT
    export JAX_PROCESS_ID=$i
    [ "$gpus" -lt "$processes" ] || export JAX_LOCAL_DEVICE_IDS=$i
    pin=()
    if [ "$processes" -gt 1 ] && command -v taskset >/dev/null; then
      # The cores that this shell may use, distributed in turns.
      mapfile -t process_cores < <(awk -F'[:\t ]+' '/^Cpus_allowed_list/ {print $2}' /proc/self/status | tr ',' '\n' |
        awk -F- '{for (c = $1; c <= ($2 == "" ? $1 : $2); c++) print c}' |
        awk -v n="$processes" -v i="$i" '{core[NR - 1] = $1} END {
          for (c = 0; c < NR; c++) if (n <= NR ? c % n == i : c == i % NR) print core[c]}')
      pin=(taskset -c "$(IFS=,; echo "${process_cores[*]}")")
    fi
    exec ${pin[@]+"${pin[@]}"} "$@" > >(sed -u "s/^/[$i] /") 2> >(sed -u "s/^/[$i] /" >&2)
  ) &
  children+=($!)
done

status=0
for child in "${children[@]}"; do
  # A trapped signal ends `wait` early: wait again until the child has ended.
  while :; do
    code=0
    wait "$child" || code=$?
    kill -0 "$child" 2>/dev/null || break
  done
  code=0
  wait "$child" || code=$? # again: after a signal, `wait` has returned another status
  [ "$status" -ne 0 ] || status=$code
done
exit "$status"
