# The other scripts of this directory source this file. It builds .venv in the checkout with the pinned packages, once.
#
#   make_environment requirements.txt [requirements-convert.txt requirements-dev.txt]
#
# make_environment puts the Python of .venv first on PATH. $PYTHON names the interpreter for .venv (3.11 or 3.12).
# An environment that is incomplete, has another Python or was moved is built again. A list that has changed is installed
# into the environment as it is: what else you have installed there stays. Where the version of jax changes, install
# jax[cuda13] or what else belongs to it again.

find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3; do
    # Run it: a shim may be on PATH without an installed Python. Of an active environment its base counts: the
    # environment itself may be the one that is built again.
    if "$candidate" 2>/dev/null -c '
import sys, venv, ensurepip
if sys.version_info[:2] not in ((3, 11), (3, 12)):
    sys.exit(1)
print(sys._base_executable)'; then
      return
    fi
    [ -z "${PYTHON:-}" ] || break # no other Python replaces $PYTHON
  done
  if [ -n "${PYTHON:-}" ]; then
    echo "error: PYTHON=$PYTHON is not Python 3.11 or 3.12 with venv and ensurepip; name another one" >&2
  else
    echo "error: no Python 3.11 or 3.12 with venv and ensurepip was found;" \
      "install one (on Debian with its -venv package), or set PYTHON to its path" >&2
  fi
  return 1
}

make_environment() {
  local python identity folder=.venv old list content
  python=$(find_python) || return 1
  # Programs of an environment name its place: where it was moved they would run another one.
  identity="$("$python" -c 'import sys; print(sys.version)') $(pwd -P)" || return 1
  if [ -e "$folder" ] && [ ! -e "$folder/made-by-janus_jax" ]; then
    echo "error: $PWD/$folder was not built by launch/environment.sh; move it away" >&2
    return 1
  fi
  if [ "$(cat "$folder/made-by-janus_jax" 2>/dev/null)" != "$identity" ]; then
    echo "building $PWD/$folder with $("$python" --version)" >&2
    if [ -e "$folder" ] || [ -L "$folder" ]; then # a link may lead nowhere
      # Under another name first: half of it must not look like an environment of somebody else.
      old=$(mktemp -d "$folder-old.XXXXXX") || return 1
      mv "$folder" "$old/" || return 1
    fi
    rm -rf "$folder"-old.*
    mkdir "$folder"
    touch "$folder/made-by-janus_jax" # an empty marker: ours, but not complete
    "$python" -m venv "$folder" || return 1
    echo "$identity" >"$folder/made-by-janus_jax"
  fi
  for list in "$@"; do
    content=$(cksum <"$list") || return 1
    if [ "$(cat "$folder/installed-$list" 2>/dev/null)" != "$content" ]; then
      echo "installing $list" >&2
      rm -f "$folder/installed-$list" # what pip leaves after a failure is neither the old list nor the new one
      # --no-compile: most of the files are never imported; Python compiles those that are when it first reads them.
      "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile -r "$list" || return 1
      echo "$content" >"$folder/installed-$list"
    fi
  done
  PATH="$PWD/$folder/bin:$PATH"
  # Compiled modules are kept, also where the caller asks Python for none: without them each process compiles 2000 files.
  export PYTHONDONTWRITEBYTECODE="" PYTHONPYCACHEPREFIX="$PWD/$folder/pycache"
}
