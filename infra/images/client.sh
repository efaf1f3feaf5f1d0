#!/usr/bin/env bash
# Prints the client to build with: DOCKER, else the first docker whose build knows mounts and whose engine answers; else one line, exit 2.
# Clients from 23 on build by the plug-in buildx alone, older ones by themselves: Debian has the latter beside what others have installed.
set -euo pipefail

able() {
  local version
  version=$("$1" version --format '{{.Client.Version}} {{.Server.Version}}' 2>/dev/null) || return 1
  [ "${version%%.*}" -lt 23 ] || "$1" buildx version >/dev/null 2>&1
}

found=0
for candidate in ${DOCKER:-docker /usr/bin/docker}; do
  command -v "$candidate" >/dev/null || continue
  found=1
  if able "$candidate"; then
    printf '%s\n' "$candidate"
    exit 0
  fi
done
if [ "$found" = 0 ]; then
  echo "images: no container engine; install docker.io (and docker-buildx where docker is 23 or newer) and start dockerd" >&2
elif ! "${DOCKER:-docker}" version >/dev/null 2>&1; then
  echo "images: no container engine answers at ${DOCKER_HOST:-the default socket}; start dockerd, or set DOCKER_HOST" >&2
else
  echo "images: docker here cannot build without its plug-in buildx; install docker-buildx" >&2
fi
exit 2
