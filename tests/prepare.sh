#!/usr/bin/env bash
# Gets what the tests need beside Python packages, from the system's packages where they may be used: Chromium for the
# browser tests, Maven for the jars of the Kafka that others run. Without them these tests are skipped.
set -u
has() { command -v "$1" >/dev/null; }

missing=()
has chromium || has chromium-browser || has google-chrome || missing+=(chromium)
has mvn || [ -d "${DUOLOGUE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/duologue}/kafka-4.1.1" ] || missing+=(maven)
[ ${#missing[@]} -eq 0 ] && exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  sudo -n true 2>/dev/null && as_root=(sudo -n) || { echo "No ${missing[*]}, and no right to install it: tests will be skipped." >&2; exit 0; }
fi
has apt-get || { echo "No ${missing[*]} and no apt-get: tests will be skipped." >&2; exit 0; }
export DEBIAN_FRONTEND=noninteractive
echo "Installing ${missing[*]} for the tests …"
{ "${as_root[@]}" apt-get update -qq && "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >"${TMPDIR:-/tmp}/duologue-apt.log" 2>&1 && exit 0
tail -5 "${TMPDIR:-/tmp}/duologue-apt.log" >&2
if [ "${CI:-}" = "true" ]; then
  echo "${missing[*]} could not be installed." >&2
  exit 1
fi
