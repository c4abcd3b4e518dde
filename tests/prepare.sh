#!/usr/bin/env bash
# Gets what the tests need beside Python packages: Chromium, from the system's packages where they may be used.
set -u
if command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null; then
  exit 0
fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then
  sudo -n true 2>/dev/null && as_root=(sudo -n) || { echo "No Chromium, and no right to install it: the browser tests will be skipped." >&2; exit 0; }
fi
command -v apt-get >/dev/null || { echo "No Chromium and no apt-get: the browser tests will be skipped." >&2; exit 0; }
export DEBIAN_FRONTEND=noninteractive
echo "Installing Chromium for the browser tests …"
{ "${as_root[@]}" apt-get update -qq && "${as_root[@]}" apt-get install -y -qq --no-install-recommends chromium; } >"${TMPDIR:-/tmp}/duologue-apt.log" 2>&1 && exit 0
tail -5 "${TMPDIR:-/tmp}/duologue-apt.log" >&2
if [ "${CI:-}" = "true" ]; then
  echo "Chromium could not be installed." >&2
  exit 1
fi
