#!/bin/sh
# Make the secrets that the compose files ask for, once, in `.env` beside them, readable for its owner only. What stands
# there already stays; so a second run changes nothing. JWT_SECRET of the repository's `.env`, if it has one, is taken.
#
# Keep the file: PostgreSQL's volume is made with its password.
set -eu
cd "$(dirname "$0")"
umask 077
touch .env
chmod 600 .env

random() {
  od -An -N32 -tx1 /dev/urandom | tr -d ' \n'
}

replace() { # the line of a variable
  { grep -v "^$1=" .env || true; } >.env.new
  printf '%s\n' "$2" >>.env.new
  mv .env.new .env
}

if own=$(grep '^JWT_SECRET=.' ../../.env 2>/dev/null); then
  replace JWT_SECRET "$own"
fi
for name in JWT_SECRET POSTGRES_PASSWORD REDIS_PASSWORD; do
  grep -q "^$name=." .env || replace "$name" "$name=$(random)"
done
