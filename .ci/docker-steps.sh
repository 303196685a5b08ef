#!/usr/bin/env bash
# Runs what the build stage of docker/Dockerfile runs, without docker: in a temporary folder, with
# an empty environment, and with the folders /src and /opt moved into it. Then starts the program.
# It shows that the steps work and that the image would hold all that ppworker needs; it does not
# show what a base image lacks.
set -euo pipefail
cd "$(dirname "$0")/.."
top=$PWD

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"  # so that PostgreSQL, which never runs as root, is reached where it lies
mkdir -p "$root/opt" "$root/src" "$root/home"

python=$(.venv/bin/python -c 'import sys; print(sys._base_executable)')
mkdir "$root/bin"
ln -s "$python" "$root/bin/python3"

clean=(env -i "PATH=$root/bin:/usr/bin:/bin" "HOME=$root/home" LANG=C.UTF-8)
# How this machine reaches a package index, if it must be told, stays.
for name in PIP_INDEX_URL PIP_CERT SSL_CERT_FILE HTTPS_PROXY https_proxy NO_PROXY no_proxy; do
  if [ -n "${!name:-}" ]; then clean+=("$name=${!name}"); fi
done

workdir=$root
while IFS=$'\t' read -r keyword arguments; do
  moved=${arguments//\/opt\//$root/opt/}
  echo "docker-steps: $keyword $arguments"
  case $keyword in
    ENV) for pair in $moved; do clean+=("$pair"); done ;;
    WORKDIR) workdir=$root$arguments ;;
    COPY)
      read -ra words <<<"$arguments"
      target=$workdir/${words[-1]}
      for source in "${words[@]:0:${#words[@]}-1}"; do
        if [ -d "$source" ]; then
          mkdir -p "$target" && cp -R "$top/$source/." "$target/"
        else
          mkdir -p "$(dirname "$target/x")" && cp "$top/$source" "$target/"
        fi
      done
      ;;
    RUN) (cd "$workdir" && "${clean[@]}" sh -euc "$moved" >"$root/log" 2>&1) || {
      cat "$root/log" >&2
      echo "docker-steps: that step failed" >&2
      exit 1
    } ;;
  esac
done < <(.venv/bin/python .ci/dockerfile.py docker/Dockerfile build)

# The second stage copies /opt/ppworker and nothing else.
rm -rf "$root/opt/build" "$root/src"
cd "$root/home"
program=("${clean[@]}" "PPWORKER_DATA_DIR=$root/home/data" "$root/opt/ppworker/bin/ppworker")
while read -r step; do
  echo "docker-steps: ppworker $step"
  read -ra words <<<"$step"
  "${program[@]}" "${words[@]}" >/dev/null
done <<'STEPS'
--help
migrate
datasets create smoke
processors create smoke kind --runner magika
processors check smoke/kind
status
top --once
STEPS
