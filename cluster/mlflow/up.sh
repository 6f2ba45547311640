#!/usr/bin/env bash
# The tracking server on the head, started for good: under systemd where there is one, else in a loop that outlives SSH.
# Runs before Ray starts and does not depend on it; may run again and again.  Afterwards, on this machine,
# MLFLOW_TRACKING_URI and ~/.mlflow/credentials are set, so that studies record there without being told.
#
#     bash cluster/mlflow/up.sh
#
#   BACKEND     postgresql (default where sudo works: Debian's package, this machine, no port), sqlite,
#               or a URL of your own database without a password in it (PGPASSFILE holds that)
#   ARTIFACTS   where artifacts go: a folder or s3://, gs://, abfss://      ($PALIMPSEST_OUT/mlflow-artifacts)
#   BACKUPS     where backup.sh writes, and what a fresh head is restored from  ($PALIMPSEST_OUT/mlflow-backups)
#   PATIENCE    seconds until it must answer (120)
#   HOST, PORT  127.0.0.1, 5000.  Another HOST opens the server to that network, with its password, without TLS
set -euo pipefail
umask 077
here=$(cd "$(dirname "$0")" && pwd)
home=~/.palimpsest
[ ! -f "$home/env" ] || . "$home/env"
command -v mlflow > /dev/null || { echo "up.sh: no mlflow on PATH; cluster/node.sh installs it" >&2; exit 1; }
[ -s "$home/mlflow_password" ] || { echo "up.sh: $home/mlflow_password is missing; cluster/secrets.sh makes it" >&2; exit 1; }

root() { sudo -n true 2> /dev/null; }
backend=${BACKEND:-$(root && echo postgresql || echo sqlite)}
case $backend in
  postgresql) bash "$here/database.sh"; url="postgresql+psycopg2:///mlflow?host=/var/run/postgresql" ;;
  sqlite)     url="sqlite:///$home/mlflow.db" ;;
  *:*@*)      echo "up.sh: BACKEND holds a password, which every user of this machine could read; use PGPASSFILE" >&2; exit 2 ;;
  *://*)      url=$backend ;;
  *)          echo "up.sh: BACKEND: postgresql, sqlite or a database URL, not $backend" >&2; exit 2 ;;
esac

out=${PALIMPSEST_OUT:-$home}
base=${url%%\?*}                              # the users' database is named like the runs', with _auth
{
  printf 'MLFLOW_BACKEND_STORE_URI=%q\n' "$url"
  printf 'USERS=%q\n' "${base%.db}_auth$(case $url in sqlite:*) echo .db ;; esac)${url#"$base"}"
  printf 'ARTIFACTS=%q\n' "${ARTIFACTS:-$out/mlflow-artifacts}"
  printf 'BACKUPS=%q\n' "${BACKUPS:-$out/mlflow-backups}"
  printf 'HOST=%q\nPORT=%q\nPATH=%q\n' "${HOST:-127.0.0.1}" "${PORT:-5000}" "$PATH"
} > "$home/mlflow.env"
mkdir -p ~/.mlflow
printf '[mlflow]\nmlflow_tracking_username = admin\nmlflow_tracking_password = %s\n' "$(cat "$home/mlflow_password")" > ~/.mlflow/credentials
echo "export MLFLOW_TRACKING_URI=http://127.0.0.1:${PORT:-5000}" > "$home/head"

bash "$here/restore.sh" --if-empty            # a new head goes on from the last backup

if [ -d /run/systemd/system ] && root; then
  for unit in mlflow.service mlflow-backup.service mlflow-backup.timer; do
    sed -e "s#@USER@#$(id -un)#g" -e "s#@HOME@#$HOME#g" -e "s#@HERE@#$here#g" "$here/$unit" | sudo tee "/etc/systemd/system/$unit" > /dev/null
  done
  sudo systemctl daemon-reload
  sudo systemctl enable --quiet --now mlflow-backup.timer
  sudo systemctl enable --quiet mlflow.service
  sudo systemctl restart mlflow.service
else
  setsid flock -n -E 0 "$home/mlflow.lock" bash -c 'while :; do bash "$1/server.sh"; sleep 2; done' - "$here" \
    < /dev/null >> "$home/mlflow.log" 2>&1 &
fi

for _ in $(seq $((2 * ${PATIENCE:-120}))); do
  if curl -fsS -m 2 "http://127.0.0.1:${PORT:-5000}/health" > /dev/null 2>&1; then
    echo "up.sh: MLflow answers on ${HOST:-127.0.0.1}:${PORT:-5000}, on ${backend%%:*}"
    exit 0
  fi
  sleep 0.5
done
echo "up.sh: MLflow has not answered for ${PATIENCE:-120} s; journalctl -u mlflow, or $home/mlflow.log" >&2
exit 1
