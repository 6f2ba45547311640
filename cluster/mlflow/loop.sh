#!/usr/bin/env bash
# What systemd does where there is one: the server, started again whenever it ends, and a backup every ten minutes in
# which something was recorded.  up.sh starts this, under a lock, so that it outlives the SSH session.
set -euo pipefail
umask 077
here=$(cd "$(dirname "$0")" && pwd)
(while sleep "${BACKUP_EVERY:-600}"; do bash "$here/backup.sh" --if-changed || true; done) &
while :; do
  bash "$here/server.sh" &
  echo $! > ~/.palimpsest/mlflow.pid        # server.sh becomes the server
  wait $! || true
  sleep 2
done
