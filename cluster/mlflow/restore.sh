#!/usr/bin/env bash
# Bring the tracking database back from a backup.  The server must be stopped (systemctl stop mlflow), and what the
# database holds now is replaced.
#
#     bash cluster/mlflow/restore.sh [FOLDER]         the newest of $BACKUPS, or this one
#     bash cluster/mlflow/restore.sh --if-empty       only where there is nothing yet: what a new head does
set -euo pipefail
umask 077
home=~/.palimpsest
set -a; . "$home/mlflow.env"; set +a
newest=$(ls -1d "$BACKUPS"/2* 2> /dev/null | tail -1 || true)
from=${1:-$newest}

# What a database holds is dropped one by one, tables, then functions of triggers: before PostgreSQL 15 the schema itself is not its owner's to drop.
EMPTY='do $$ declare it record; begin
  for it in select tablename as name from pg_tables where schemaname = current_schema() loop
    execute format($drop$drop table %I cascade$drop$, it.name);
  end loop;
  for it in select oid::regprocedure as name from pg_proc
            where pronamespace = current_schema()::regnamespace and pg_get_userbyid(proowner) = current_user loop
    execute format($drop$drop function %s cascade$drop$, it.name);
  end loop;
end $$;'
load() {                            # file, URL: all of it, or nothing changes
  case $2 in
    sqlite:///*) cp "$1" "${2#sqlite:///}.new"; rm -f "${2#sqlite:///}"-*; mv "${2#sqlite:///}.new" "${2#sqlite:///}" ;;
    *)           pg_restore --no-owner --no-privileges --file="$work/sql" "$1"
                 PGOPTIONS='-c client_min_messages=warning' psql -q -v ON_ERROR_STOP=1 --single-transaction \
                   --command="$EMPTY" --file="$work/sql" "${2/+psycopg2/}" > /dev/null ;;
  esac
}
forget() {                          # the drivers' marks: what was recorded after the backup is sent again
  local marks="delete from tags where key = 'journal'"
  case $1 in
    sqlite:///*) python -c 'import contextlib, sqlite3, sys
with contextlib.closing(sqlite3.connect(sys.argv[1])) as a, a: a.execute(sys.argv[2])' "${1#sqlite:///}" "$marks" ;;
    *)           psql -q -v ON_ERROR_STOP=1 "${1/+psycopg2/}" -c "$marks" ;;
  esac
}
if [ "${1:-}" = --if-empty ]; then
  [ -n "$newest" ] || exit 0
  from=$newest
  case $MLFLOW_BACKEND_STORE_URI in
    sqlite:///*) [ ! -e "${MLFLOW_BACKEND_STORE_URI#sqlite:///}" ] || exit 0 ;;
    *)           [ -z "$(psql -qAt "${MLFLOW_BACKEND_STORE_URI/+psycopg2/}" -c \
                   "select 1 from pg_tables where tablename = 'experiments'")" ] || exit 0 ;;
  esac
elif curl -fsS -m 2 "http://$ADDRESS:$PORT/health" > /dev/null 2>&1; then
  echo "restore.sh: the server is running; stop it first (sudo systemctl stop mlflow)" >&2
  exit 1
fi
[ -n "$from" ] && [ -d "$from" ] || { echo "restore.sh: no backup in $BACKUPS" >&2; exit 1; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
load "$from/runs" "$MLFLOW_BACKEND_STORE_URI"
forget "$MLFLOW_BACKEND_STORE_URI"
load "$from/users" "$USERS"
echo "restore.sh: from $from"
