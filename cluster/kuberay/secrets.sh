#!/usr/bin/env bash
# The cluster's secrets, made where they are missing; no value is printed or is an argument.
#
#     bash cluster/kuberay/secrets.sh            (kubectl must point at the cluster; namespace `palimpsest` exists)
#
#   ray-token    auth_token                                    Ray's token, on every pod of every RayCluster
#   postgres     password                                      of the database, inside the namespace only
#   mlflow       password, flask-secret                        of MLflow's user `admin`; of its browser sessions
# To read MLflow's:  kubectl -n palimpsest get secret mlflow -o jsonpath='{.data.password}' | base64 -d > mlflow_password
set -euo pipefail
umask 077
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
random() { head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n'; }
absent() { ! kubectl -n palimpsest get secret "$1" > /dev/null 2>&1; }

if absent ray-token; then
  random > "$work/auth_token"
  kubectl -n palimpsest create secret generic ray-token --from-file="$work/auth_token"
fi
if absent postgres; then
  random > "$work/password"
  kubectl -n palimpsest create secret generic postgres --from-file="$work/password"
fi
if absent mlflow; then
  random > "$work/password"
  random > "$work/flask-secret"
  kubectl -n palimpsest create secret generic mlflow --from-file="$work/password" --from-file="$work/flask-secret"
fi
