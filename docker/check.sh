#!/usr/bin/env bash
# Runs the steps of the Dockerfile in a clean Debian root, where there is no container engine:
#   sudo docker/check.sh EMPTY_FOLDER [ARGUMENTS_OF_THE_ENTRYPOINT...]
# Needs debootstrap. It understands what this Dockerfile uses: FROM, RUN, WORKDIR, COPY . ., ENV, ENTRYPOINT, CMD.
# The caller's certificates, PIP_* and *_PROXY hold inside.
set -euo pipefail
root=$(realpath -m "$1"); shift
cd "$(dirname "$0")/.."
[ -e "$root/usr" ] || debootstrap --variant=minbase bookworm "$root" >&2
cp /etc/resolv.conf "$root/etc/"
cp -r /etc/ssl/certs "$root/etc/ssl/" 2>/dev/null || true
mount -t proc proc "$root/proc" && trap 'umount "$root/proc"' EXIT
folder=/
mapfile -t variables < <(env | grep -E '^(PIP_[A-Z_]+|[A-Za-z]+_(PROXY|proxy))=' || true)
inside() { env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin "${variables[@]}" "$(command -v chroot)" "$root" /bin/sh -ec "cd $folder; $1"; }
while IFS=' ' read -r -u 3 step rest; do
  echo "== $step $rest" >&2
  case $step in
    FROM) [ "$rest" = debian:bookworm-slim ] ;;
    RUN) inside "$rest" ;;
    WORKDIR) folder=$rest; mkdir -p "$root$folder" ;;
    COPY) [ "$rest" = ". ." ]; git ls-files -z | xargs -0 cp --parents -t "$root$folder" ;;
    ENV) variables+=("$rest") ;;
    ENTRYPOINT) entry=$(tr -d '[]",' <<<"$rest") ;;
    CMD) default=$(tr -d '[]",' <<<"$rest") ;;
    *) echo "unknown step $step" >&2; exit 1 ;;
  esac
done 3< <(sed -e '/^#/d' -e '/^$/d' docker/Dockerfile | sed -e ':a' -e '/\\$/N; s/\\\n */ /; ta')
inside "$entry ${*:-$default}"
