#!/usr/bin/env bash
# Gets what the tests need beside Python packages: from the system's packages, where they may be used, Chromium for the
# browser tests, nginx for the distributed mode, and Maven; by Maven, Kafka's jars. Tests that need what cannot be had are
# skipped and say so. With CI=true it is a failure, for Chromium and nginx only where apt-get can be used.
set -u
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/sbin:/usr/local/sbin" # where Debian keeps nginx
log="${TMPDIR:-/tmp}/duologue-apt.log"
policy=/usr/sbin/policy-rc.d # with this file, packages start no services
status=0

has() { command -v "$1" >/dev/null; }
has_jars() { .venv/bin/python -c 'import sys; from duologue.cluster.kafka import jars; sys.exit(not jars().is_dir())'; }

missing=()
has chromium || has chromium-browser || has google-chrome || missing+=(chromium)
has nginx || missing+=(nginx)
has mvn || has_jars || missing+=(maven)

without() { # WHY PACKAGE…
  echo "$1: no ${*:2}. The tests that need it are skipped." >&2
}

install() { # PACKAGE…
  as_root apt-get update -qq >"$log" 2>&1
  local package
  for package in "$@"; do
    echo "Installing $package for the tests …"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package" >>"$log" 2>&1 && continue
    tail -5 "$log" >&2
    without "apt-get failed" "$package"
    [ "${CI:-}" != true ] || status=1
  done
}

if [ "$(id -u)" -eq 0 ]; then as_root() { "$@"; }; else as_root() { sudo -n "$@"; }; fi

if [ ${#missing[@]} -eq 0 ]; then
  :
elif ! has apt-get; then
  without "There is no apt-get" "${missing[@]}"
elif ! as_root true 2>/dev/null; then
  without "There is no right to install packages" "${missing[@]}"
elif as_root test -e "$policy"; then
  install "${missing[@]}"
else
  trap 'as_root rm -f "$policy"' EXIT
  printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null && as_root chmod 755 "$policy"
  install "${missing[@]}"
fi

if ! has_jars; then
  echo "Getting Kafka's jars by Maven for the tests …"
  if ! .venv/bin/python -m duologue.cluster.kafka; then
    without "That failed" Kafka
    [ "${CI:-}" != true ] || status=1
  fi
fi
exit $status
