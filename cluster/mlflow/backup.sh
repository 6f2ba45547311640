#!/usr/bin/env bash
# Write the tracking database (runs and users) into $BACKUPS/<time>/, while the server runs.  Artifacts lie elsewhere.
#
#     bash cluster/mlflow/backup.sh                   now: before `ray down`, say
#     bash cluster/mlflow/backup.sh --if-changed      only if anything was recorded since the newest: every ten minutes, by
#                                                     timer or loop.sh, and when the service ends, as in a shutdown
# Kept are the newest six, and each day's newest of the last fourteen days that have one.
set -euo pipefail
umask 077
home=~/.palimpsest
set -a; . "$home/mlflow.env"; set +a
mkdir -p "$BACKUPS" && cd "$BACKUPS"
exec 9> "$home/backup.lock"
flock 9                             # timer, shutdown and a person may all want one

# What differs after anything was written.  PostgreSQL: the next transaction that writes; its statistics come seconds late.
changes() {                         # URL
  case $1 in
    sqlite:///*) stat -c '%s %y' "${1#sqlite:///}" "${1#sqlite:///}-wal" 2> /dev/null || true ;;
    *)           psql -qAt "${1/+psycopg2/}" -c 'select txid_snapshot_xmax(txid_current_snapshot())' ;;
  esac
}
save() {                            # URL, file
  case $1 in
    sqlite:///*) python -c 'import contextlib, sqlite3, sys
with contextlib.closing(sqlite3.connect(sys.argv[1])) as a, contextlib.closing(sqlite3.connect(sys.argv[2])) as b: a.backup(b)' \
                   "${1#sqlite:///}" "$2" ;;
    *)           pg_dump --format=custom --no-owner --file="$2" "${1/+psycopg2/}" ;;
  esac
}
now="$(hostname) $(changes "$MLFLOW_BACKEND_STORE_URI") $(changes "$USERS")"        # before: what comes meanwhile is for the next
newest=$(ls -1d 2* 2> /dev/null | tail -1 || true)
if [ "${1:-}" = --if-changed ] && [ -n "$newest" ] && [ "$(cat "$newest/state" 2> /dev/null)" = "$now" ]; then exit 0; fi

work=$(mktemp -d .unfinished-XXXXXX)
trap 'rm -rf "$work"' EXIT
save "$MLFLOW_BACKEND_STORE_URI" "$work/runs"
save "$USERS" "$work/users"
echo "$now" > "$work/state"
into=$(date -u +%Y%m%dT%H%M%SZ)
[ "$into" != "$newest" ] || { sleep 1; into=$(date -u +%Y%m%dT%H%M%SZ); }       # two within a second
mv -T "$work" "$into"               # whole or absent
trap - EXIT
ls -1d 2* | sort -r | awk '{ day = substr($0, 1, 8); first = !(day in seen); seen[day]; days += first }
                           NR > 6 && !(first && days <= 14)' | xargs -r rm -rf
echo "backup.sh: $BACKUPS/$into"
