#!/usr/bin/env bash
# Checks lint and format, and runs the tests but the slow ones (-m "": all). Arguments go to pytest: ./launch/test.sh tests/model -x
# Builds an environment in .venv (see environment.sh). .cache keeps compiled programs, so that a second run is faster.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
make_environment requirements.txt requirements-convert.txt requirements-glge.txt requirements-play.txt requirements-dev.txt

export JANUS_JAX_CACHE="${JANUS_JAX_CACHE-$PWD/.cache}"
ruff check .
ruff format --check .
# File by file, in the order of tests/conftest.py: longest first.
exec python -m pytest --numprocesses=auto --dist=loadfile --no-loadscope-reorder "$@"
