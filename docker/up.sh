#!/bin/sh
# Starts the stack, waits until every service is healthy, and says where things are.
set -eu
compose() { ${COMPOSE:-docker compose} "$@"; }
port() { compose port "$1" "$2" | tail -n 1; }

GIT_COMMIT=${GIT_COMMIT:-$(git rev-parse HEAD 2>/dev/null || echo unknown)}
export GIT_COMMIT
compose up -d "$@"

printf 'waiting until every service is healthy' >&2
end=$(($(date +%s) + ${UP_SECONDS:-300}))
while :; do
    waiting=''
    for id in $(compose ps -a -q); do
        name=$(docker inspect -f '{{index .Config.Labels "com.docker.compose.service"}}' "$id")
        case $(docker inspect -f '{{.State.Status}} {{if .State.Health}}{{.State.Health.Status}}{{end}} {{.State.ExitCode}}' "$id") in
            'running healthy '* | 'running  '* | 'exited '*' 0') ;;
            *) waiting="$waiting $name" ;;
        esac
    done
    [ -z "$waiting" ] && break
    if [ "$(date +%s)" -gt "$end" ]; then
        printf '\nnot healthy after %s s:%s; see: docker compose logs%s\n' "${UP_SECONDS:-300}" "$waiting" "$waiting" >&2
        exit 1
    fi
    printf . >&2
    sleep 2
done

cat <<TEXT

live page   http://$(port api 8000)/      key: $(compose exec -T api cat keys/stack)
API         http://$(port api 8001)/docs
Grafana     http://$(port grafana 3000)/      user: admin, password: $(compose exec -T grafana cat /run/grafana-secret/password)
Prometheus  http://$(port prometheus 9090)/
TEXT
