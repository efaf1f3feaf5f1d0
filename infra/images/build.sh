#!/usr/bin/env bash
# Builds the images: build.sh PYTHON [-- PIP_ARGS...], called by `make images`. PYTHON is the project's environment.
#   VARIANT=cpu|gpu   the build of torch; gpu images are tagged COMMIT-gpu
#   BASE=IMAGE        python:3.11-slim-bookworm@sha256:..., a mirror of it, or a local image with Python 3.11; without it that tag is
#                     pulled, and the digest it stands for now is said and labelled, to be given the next time
#   IMAGES=sr3-{room} name of an image without its tag, as registry.example/team/sr3-{room}
#   ROOMS="prepare train evaluate export"
#   DOCKER=docker     the engine's client; DOCKER_HOST says which engine
#   CHECK=1           also build base and prepare anew, and compare every file of the two
#   SBOM=FOLDER       also write each image's bill of materials there (needs the packages of the tests)
# Tags are commits, so a working tree that differs from its commit is refused. One line is printed for each image.
set -euo pipefail

python=$(realpath --no-symlinks "$1")
shift
if [ "${1:-}" = -- ]; then shift; fi
pip_args=("$@")
cd "$(dirname "$0")/../.."
variant=${VARIANT:-cpu} images=${IMAGES:-sr3-\{room\}} rooms=${ROOMS:-prepare train evaluate export}
out=build/images

refuse() {
  printf 'images: %s\n' "$1" >&2
  exit 2
}
docker() { DOCKER_BUILDKIT=1 "$client" "$@"; }
name() { printf '%s:%s' "${images//\{room\}/$1}" "$tag"; } # the image of a room

build() { # build NAME ARGUMENTS...: an image and its line
  local image=$1 from=$SECONDS
  shift
  if ! docker build --network none --progress plain --tag "$image" "$@" . >>"$out/build.log" 2>&1; then
    tail -n 30 "$out/build.log" >&2
    refuse "$image failed; all of it is in $out/build.log"
  fi
  printf 'images: %s  %s MB  %d s\n' "$image" "$(docker image inspect --format '{{.Size}}' "$image" | awk '{ printf "%d", $1 / 1000000 }')" $((SECONDS - from))
}

case $variant in cpu | gpu) ;; *) refuse "VARIANT=$variant; allowed: cpu, gpu" ;; esac
case $images in *\{room\}*) ;; *) refuse "IMAGES=$images; allowed: a name with {room} in it" ;; esac
for room in $rooms; do [ -e "components/$room/Dockerfile" ] || refuse "ROOMS: no room $room; allowed: prepare train evaluate export"; done
client=$(bash infra/images/client.sh) || exit 2

commit=$(git rev-parse HEAD 2>/dev/null) || refuse "no git commit here; allowed: a clone of the repository, whose commit names the images"
changed=$(git status --porcelain | wc -l)
[ "$changed" = 0 ] || refuse "$changed files differ from commit ${commit:0:12}, which would name the images; commit them or put them away"
tag=${commit:0:12}
[ "$variant" = cpu ] || tag=$tag-$variant
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
mkdir -p "$out"
: >"$out/build.log"

base=${BASE:-python:3.11-slim-bookworm}
docker image inspect "$base" >/dev/null 2>&1 || docker pull --quiet "$base" >>"$out/build.log" 2>&1 ||
  refuse "no image $base here, and it cannot be pulled; give BASE=... with a mirror's name and digest, or a local image with Python 3.11"
digest=$(docker image inspect --format '{{if .RepoDigests}}{{index .RepoDigests 0}}{{else}}{{.Id}}{{end}}' "$base")
case $digest in *@*) from=$digest ;; *) from=$base ;; esac # an image that no registry knows has an id alone
printf 'images: base %s, which is %s\n' "$base" "$digest"
here=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
there=$(docker run --rm --network none "$from" python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) ||
  refuse "$base does not start python3; allowed: an image with Python 3.11 to 3.13 and its venv"
[ "$here" = "$there" ] || refuse "$base has Python $there, this environment $here, whose pip chooses the wheels; make images PYTHON=python$there"

start=$SECONDS
"$python" infra/images/wheels.py "$variant" "$out/wheels" -- "${pip_args[@]}"
printf 'images: wheels  %s MB  %d s\n' "$(du -sm "$out/wheels/files" | cut -f1)" $((SECONDS - start))

if [ "$(cat "$out/project/commit" 2>/dev/null)" != "$commit" ]; then
  rm -rf "$out/source" "$out/project"
  mkdir -p "$out/source" "$out/project/files"
  git archive HEAD | tar -x -C "$out/source"
  "$python" -m pip wheel --quiet --no-index --no-deps --no-build-isolation --wheel-dir "$out/project/files" "$out/source" >>"$out/build.log" 2>&1 ||
    refuse "the project's wheel failed; all of it is in $out/build.log"
  wheel=$(basename "$out"/project/files/*.whl)
  printf 'sr3==%s --hash=sha256:%s\n' "$(cut -d- -f2 <<<"$wheel")" "$(sha256sum "$out/project/files/$wheel" | cut -d' ' -f1)" >"$out/project/project.txt"
  printf '%s' "$commit" >"$out/project/commit"
fi
code_hash=$(cd "$out/source" && PYTHONDONTWRITEBYTECODE=1 "$python" -c 'from components.cluster import code_hash; print(code_hash())')
labels=(
  --build-arg "REVISION=$commit" --build-arg "VERSION=$(sed -E 's/sr3==([^ ]+).*/\1/' "$out/project/project.txt")"
  --build-arg "CREATED=$(date --utc --date="@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)" --build-arg "VARIANT=$variant"
  --build-arg "CODE_HASH=$code_hash" --build-arg "LOCK_HASH=$(sha256sum infra/images/requirements.lock | cut -d' ' -f1)"
  --label "org.opencontainers.image.base.name=$base" --label "org.opencontainers.image.base.digest=${digest##*@}"
)
source=$(git config --get remote.origin.url | sed -E 's#//[^/@]*@#//#' || true)
case $source in https://*) labels+=(--label "org.opencontainers.image.source=$source") ;; esac # a folder's name says nothing to others

stages=(base)
case " $rooms " in *" train "* | *" evaluate "* | *" export "*) stages+=(torch) ;; esac
for stage in "${stages[@]}"; do
  build "$(name "$stage")" --file infra/images/Dockerfile --target "$stage" --build-arg "BASE=$from" --build-arg "VARIANT=$variant"
done
for room in $rooms; do
  below=torch
  if [ "$room" = prepare ]; then below=base; fi
  build "$(name "$room")" --file "components/$room/Dockerfile" --build-arg "BASE_IMAGE=$(name "$below")" "${labels[@]}"
done

if [ "${CHECK:-}" = 1 ]; then
  again() { printf '%s-again' "$(name "$1")"; }
  build "$(again base)" --no-cache --file infra/images/Dockerfile --target base --build-arg "BASE=$from"
  build "$(again prepare)" --no-cache --file components/prepare/Dockerfile --build-arg "BASE_IMAGE=$(again base)" "${labels[@]}"
  "$python" infra/images/compare.py "$client" "$(name prepare)" "$(again prepare)"
  docker image rm "$(again prepare)" "$(again base)" >/dev/null
fi

if [ -n "${SBOM:-}" ]; then
  for room in $rooms; do "$python" infra/images/sbom.py "$client" "$(name "$room")" "$SBOM"; done
fi
