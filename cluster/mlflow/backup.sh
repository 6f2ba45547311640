#!/usr/bin/env bash
# Write the tracking database (runs and users) into $BACKUPS/<time>/, while the server runs; keep the last 14.
# mlflow-backup.timer does this every six hours; do it before `ray down`.  Artifacts lie elsewhere and are not in it.
set -euo pipefail
umask 077
home=~/.palimpsest
set -a; . "$home/mlflow.env"; set +a
into="$BACKUPS/$(date -u +%Y%m%dT%H%M%SZ)"
mkdir -p "$BACKUPS" && work=$(mktemp -d "$BACKUPS/.unfinished-XXXXXX")
trap 'rm -rf "$work"' EXIT

save() {                            # URL, file
  case $1 in
    sqlite:///*) python -c 'import contextlib, sqlite3, sys
with contextlib.closing(sqlite3.connect(sys.argv[1])) as a, contextlib.closing(sqlite3.connect(sys.argv[2])) as b: a.backup(b)' \
                   "${1#sqlite:///}" "$2" ;;
    *)           pg_dump --format=custom --no-owner --file="$2" "${1/+psycopg2/}" ;;
  esac
}
save "$MLFLOW_BACKEND_STORE_URI" "$work/runs"
save "$USERS" "$work/users"
mv -T "$work" "$into"               # whole or absent
trap - EXIT
ls -1d "$BACKUPS"/2* | head -n -14 | xargs -r rm -rf
echo "backup.sh: $into"
