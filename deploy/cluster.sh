#!/usr/bin/env bash
# The distributed mode on this machine, as `make start-all` and its like call it: with Docker where there is one, else as
# processes of this user under supervisord (`python -m duologue.cluster`). ENGINE=docker or ENGINE=local decides by hand.
#
#   deploy/cluster.sh start|start-dependencies|start-backend|stop|restart|status|logs|clean
set -euo pipefail
cd "$(dirname "$0")/.."
command=${1:?which command?}

local_runs() { # a cluster that was started without Docker is also stopped without it
  local folder=${CLUSTER_DIR:-$(sed -n 's/^CLUSTER_DIR=//p' deploy/local.env)} pid
  read -r pid 2>/dev/null <"$folder/supervisord.pid" && kill -0 "$pid" 2>/dev/null
}

engine() {
  case "${ENGINE:-}" in
    local | docker) echo "$ENGINE" ;;
    "") if ! local_runs && docker compose version >/dev/null 2>&1 && docker info >/dev/null 2>&1; then echo docker; else echo local; fi ;;
    *) echo "ENGINE=$ENGINE is not known: it is local or docker." >&2 && return 1 ;;
  esac
}

with_supervisord() {
  make --silent --no-print-directory install-cluster compiled
  exec .venv/bin/python -m duologue.cluster "$command"
}

compose() {
  docker compose --env-file deploy/local.env --env-file deploy/compose/.env -f "deploy/compose/${file:-compose}.yaml" "$@"
}

with_docker() {
  local dependencies=(kafka postgres valkey) services=()
  [ -z "${SERVICE:-}" ] || services=("$SERVICE")
  sh deploy/compose/secrets.sh
  # A provider takes the place of the built-in model, unless that stands in for it.
  if grep -qsE '^ *(OPENAI_API_KEY|OPENAI_BASE_URL)=.' .env && ! grep -qsE '^ *FALLBACK_MODELS=.*builtin' .env; then
    export BUILTIN_MODELS=0
  fi
  case "$command" in
    start) compose up --detach --wait --build && echo "Open http://$(compose port nginx 8080). Logs: make logs; stop: make stop-all." ;;
    start-dependencies) file=dependencies compose up --detach --wait "${dependencies[@]}" ;;
    start-backend) COMPOSE_IGNORE_ORPHANS=true file=backend compose up --detach --wait --build ;;
    stop) compose stop ;;
    restart) restart_roles ;;
    status) compose ps --all ;;
    logs) compose logs --follow --tail 10 ${services[@]+"${services[@]}"} ;;
    clean) confirm && compose down --volumes --remove-orphans ;;
    *) echo "$command is not known." >&2 && return 1 ;;
  esac
}

restart_roles() { # kind after kind, so that one of each other kind always runs
  local role
  compose build
  compose run --rm migrate
  for role in message-relay ai-consumer api websocket-server; do
    compose up --detach --wait --no-deps --force-recreate "$role"
  done
}

confirm() {
  [ -n "${FORCE:-}" ] && return
  read -r -p "Remove all data of the cluster in Docker's volumes? [y/N]: " answer
  [ "$answer" = y ]
}

engine=$(engine)
if [ "$engine" = docker ]; then with_docker; else with_supervisord; fi
