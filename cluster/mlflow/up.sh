#!/usr/bin/env bash
# The tracking server on the head, started for good: under systemd where there is one, else in a loop that outlives SSH.
# Runs before Ray starts and does not depend on it; may run again and again.  Afterwards, on this machine,
# MLFLOW_TRACKING_URI and ~/.mlflow/credentials are set, so that studies record there without being told.
#
#     bash cluster/mlflow/up.sh
#
#   BACKEND     postgresql (default where sudo works: Debian's package, this machine, no port), sqlite, or a URL of a
#               database elsewhere, which outlives the head, its password in ~/.pgpass (elsewhere.sh)
#   SECRET      AWS: the secret that holds that password, instead
#   ARTIFACTS   where artifacts go: a folder or s3://                       ($PALIMPSEST_OUT/mlflow-artifacts)
#               (gs://, abfss:// with the client that MLflow asks for: google-cloud-storage, azure-storage-file-datalake)
#   BACKUPS     where backup.sh writes, and what a fresh head is restored from  ($PALIMPSEST_OUT/mlflow-backups)
#   PATIENCE    seconds until it must answer (120)
#   HOST, PORT  127.0.0.1, 5000.  Another HOST (an address, or 0.0.0.0 for all) opens the server to that network, with its
#               password, without TLS
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
  *://*:*@*)  echo "up.sh: BACKEND holds a password, which every user of this machine could read; use ~/.pgpass" >&2; exit 2 ;;
  postgresql*://*) url=$backend; bash "$here/elsewhere.sh" "$url" ;;
  *://*)      url=$backend ;;
  *)          echo "up.sh: BACKEND: postgresql, sqlite or a database URL, not $backend" >&2; exit 2 ;;
esac

out=${PALIMPSEST_OUT:-$home} host=${HOST:-127.0.0.1} port=${PORT:-5000}
address=$host                                 # under which this machine itself asks
[ "$host" != 0.0.0.0 ] || address=127.0.0.1
base=${url%%\?*}                              # the users' database is named like the runs', with _auth
{
  printf 'MLFLOW_BACKEND_STORE_URI=%q\n' "$url"
  printf 'USERS=%q\n' "${base%.db}_auth$(case $url in sqlite:*) echo .db ;; esac)${url#"$base"}"
  printf 'ARTIFACTS=%q\n' "${ARTIFACTS:-$out/mlflow-artifacts}"
  printf 'BACKUPS=%q\n' "${BACKUPS:-$out/mlflow-backups}"
  printf 'HOST=%q\nADDRESS=%q\nPORT=%q\nPATH=%q\n' "$host" "$address" "$port" "$PATH"
} > "$home/mlflow.env"
mkdir -p ~/.mlflow
printf '[mlflow]\nmlflow_tracking_username = admin\nmlflow_tracking_password = %s\n' "$(cat "$home/mlflow_password")" > ~/.mlflow/credentials
echo "export MLFLOW_TRACKING_URI=http://$address:$port" > "$home/head"

bash "$here/restore.sh" --if-empty            # a new head goes on from the last backup

if [ -d /run/systemd/system ] && root; then
  for unit in mlflow.service mlflow-backup.service mlflow-backup.timer; do
    sed -e "s#@USER@#$(id -un)#g" -e "s#@HOME@#$HOME#g" -e "s#@HERE@#$here#g" -e "s#@OUT@#$out#g" "$here/$unit" |
      sudo tee "/etc/systemd/system/$unit" > /dev/null
  done
  sudo systemctl daemon-reload
  sudo systemctl enable --quiet --now mlflow-backup.timer
  sudo systemctl enable --quiet mlflow.service
  sudo systemctl restart mlflow.service
else
  # A loop that is there already keeps its lock; its server is ended, and comes back with these settings.
  old=$(cat "$home/mlflow.pid" 2> /dev/null || true)
  if [ -n "$old" ] && ! flock -n "$home/mlflow.lock" true && kill "$old" 2> /dev/null; then
    while kill -0 "$old" 2> /dev/null; do sleep 0.2; done
  fi
  setsid flock -n -E 0 "$home/mlflow.lock" bash "$here/loop.sh" < /dev/null >> "$home/mlflow.log" 2>&1 &
fi

for _ in $(seq $((2 * ${PATIENCE:-120}))); do
  if curl -fsS -m 2 "http://$address:$port/health" > /dev/null 2>&1; then
    echo "up.sh: MLflow answers on $host:$port, on ${backend%%:*}"
    exit 0
  fi
  sleep 0.5
done
echo "up.sh: MLflow has not answered for ${PATIENCE:-120} s; journalctl -u mlflow, or $home/mlflow.log" >&2
exit 1
