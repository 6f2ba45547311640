#!/usr/bin/env bash
# The two secrets of a cluster, made where they are missing; names are printed, contents never.
#
#     bash cluster/secrets.sh
#
#   ~/.ray/auth_token               Ray's token: whoever has it can run anything on the cluster
#   ~/.palimpsest/mlflow_password   the password of MLflow's user `admin`
#
# `ray up` copies both to the machines over SSH (file_mounts), so no YAML, command line or log holds them.
# To change one: delete the file, run this, `ray up` again (MLflow's: see cluster/README.md).
set -euo pipefail
umask 077

mkdir -p ~/.ray ~/.palimpsest
for file in ~/.ray/auth_token ~/.palimpsest/mlflow_password; do
  if [ -s "$file" ]; then
    echo "kept $file"
  else
    head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' > "$file"
    echo "made $file"
  fi
  chmod 600 "$file"               # `ray get-auth-token --generate` would leave it readable by everybody
done
