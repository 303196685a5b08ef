#!/usr/bin/env bash
# Makes sure that Debian's redis-server, postgresql, pgbouncer and prometheus (for its promtool) are
# installed, for `make test-system`. Does nothing when they are there. Leaves no service running:
# the tests start servers of their own, and of Prometheus only promtool is used.
set -euo pipefail

missing=()
command -v redis-server >/dev/null || missing+=(redis-server)
compgen -G "/usr/lib/postgresql/*/bin/postgres" >/dev/null || missing+=(postgresql)
command -v pgbouncer >/dev/null || [ -x /usr/sbin/pgbouncer ] || missing+=(pgbouncer)
command -v promtool >/dev/null || missing+=(prometheus)
if [ ${#missing[@]} -eq 0 ]; then
  echo "debian-packages: redis-server, postgresql, pgbouncer and promtool are there"
  exit 0
fi

give_up() {
  echo "debian-packages: ${missing[*]} missing, and $1" >&2
  echo "debian-packages: run 'apt-get install ${missing[*]}' as root, then try again" >&2
  exit 1
}

command -v apt-get >/dev/null || give_up "this system has no apt-get"
if [ "$(id -u)" -eq 0 ]; then
  as_root=()
elif sudo -n true 2>/dev/null; then
  as_root=(sudo -n)
else
  give_up "only root may install them (there is no sudo without a password)"
fi

# The packages start a service each as they are installed, unless a policy says no.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" install -m 755 /dev/stdin "$policy"
  trap '"${as_root[@]}" rm -f "$policy"' EXIT
fi

echo "debian-packages: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get -qq update
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
  apt-get -qq install --no-install-recommends "${missing[@]}" >/dev/null
