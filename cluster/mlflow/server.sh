#!/usr/bin/env bash
# The tracking server itself, in the foreground: migrate, then serve.  systemd (mlflow.service) or up.sh's loop runs it.
# Settings come from ~/.palimpsest/mlflow.env, secrets from files beside it; neither is in an argument that `ps` shows.
set -euo pipefail
umask 077
home=~/.palimpsest
set -a; . "$home/mlflow.env"; set +a
: "${MLFLOW_BACKEND_STORE_URI:?}" "${USERS:?}" "${ARTIFACTS:?}" "${HOST:?}" "${ADDRESS:?}" "${PORT:?}"

[ -s "$home/flask_secret" ] || head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' > "$home/flask_secret"
cat > "$home/mlflow_auth.ini" <<INI
[mlflow]
default_permission = READ
database_uri = $USERS
admin_username = admin
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 60
INI
MLFLOW_FLASK_SERVER_SECRET_KEY=$(cat "$home/flask_secret")
MLFLOW_AUTH_ADMIN_PASSWORD=$(cat "$home/mlflow_password")
export MLFLOW_FLASK_SERVER_SECRET_KEY MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_AUTH_CONFIG_PATH="$home/mlflow_auth.ini"
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false       # eight processes and 1.8 GB that nothing here uses
export MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true

# Names under which the server may be addressed; the option replaces MLflow's own list.
names="localhost:*,127.0.0.1:*"
[ "$HOST" = 127.0.0.1 ] || names="$names,$ADDRESS:*,$(hostname):*,$(hostname -I | tr ' ' '\n' | sed '/^$/d; s/$/:*/' | paste -sd,)"

# A database that is older than the package is migrated; an empty one is made by the server.
tables=$(python -c 'import os, sqlalchemy as db
print(*db.inspect(db.create_engine(os.environ["MLFLOW_BACKEND_STORE_URI"])).get_table_names())')
case " $tables " in *" experiments "*) mlflow db upgrade "$MLFLOW_BACKEND_STORE_URI" ;; esac

exec mlflow server --app-name basic-auth --host "$HOST" --port "$PORT" --workers 2 --artifacts-destination "$ARTIFACTS" \
  --allowed-hosts "$names"
