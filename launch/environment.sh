# Sourced by the scripts beside it: builds .venv in the checkout with the pinned packages, once.
#
#   make_environment requirements.txt [requirements-convert.txt requirements-dev.txt]
#
# Puts the Python of .venv first on PATH. $PYTHON names the interpreter to build on (3.11 or 3.12). An incomplete environment, or
# one for other requirements or another Python, is built again.

find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3; do
    # Run it: a shim may stand for a Python that is not installed.
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
    [ -z "${PYTHON:-}" ] || break # nothing else replaces the one that $PYTHON names
  done
  if [ -n "${PYTHON:-}" ]; then
    echo "error: PYTHON=$PYTHON is not Python 3.11 or 3.12 with venv and ensurepip; name another one" >&2
  else
    echo "error: no Python 3.11 or 3.12 with venv and ensurepip was found; install one (on Debian with its -venv package), or set PYTHON to its path" >&2
  fi
  return 1
}

make_environment() {
  local python wanted folder=.venv list
  python=$(find_python) || return 1
  wanted=$("$python" -c 'import hashlib, pathlib, sys
print(sys.version, *(hashlib.sha256(pathlib.Path(name).read_bytes()).hexdigest() for name in ("requirements.txt", "requirements-convert.txt", "requirements-dev.txt")))') || return 1
  if [ -e "$folder" ] && [ ! -e "$folder/made-by-janus_jax" ]; then
    echo "error: $PWD/$folder was not built by launch/environment.sh; move it away" >&2
    return 1
  fi
  if [ "$(cat "$folder/made-by-janus_jax" 2>/dev/null)" != "$wanted" ]; then
    echo "building $PWD/$folder with $("$python" --version)" >&2
    rm -rf "$folder"
    mkdir "$folder"
    touch "$folder/made-by-janus_jax" # marks the folder as ours; the text is written when it is complete
    "$python" -m venv "$folder" || return 1
    echo "$wanted" >"$folder/made-by-janus_jax"
  fi
  for list in "$@"; do
    if [ ! -e "$folder/installed-$list" ]; then
      echo "installing $list" >&2
      "$folder/bin/python" -m pip install --quiet --disable-pip-version-check -r "$list" || return 1
      touch "$folder/installed-$list"
    fi
  done
  PATH="$PWD/$folder/bin:$PATH"
}
