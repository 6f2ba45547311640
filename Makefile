# make study           the encoder ablation on the built-in corpus: no GPU, no download     (ARGS="--seeds 4" adds a seed)
# make test            everything that can be checked, from an empty machine
# make test-cluster    the cluster files on pretend clouds and hosts; labs want root and, from apt, openssh-server rsync
#                      iproute2 postgresql; a test whose tool is not there skips, and says why
# make ui              compare arms in MLflow, on http://127.0.0.1:5000
# make search          look at searches in optuna-dashboard, on http://127.0.0.1:8080

PYTHON ?= python3
BIN    := .venv/bin

.PHONY: study test test-cluster ui search lint clean

study: .venv/installed
	$(BIN)/python studies/ablation_encoder.py $(ARGS)

test: lint
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile $(ARGS)

test-cluster: .venv/installed-test
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test-cluster]'
	PALIMPSEST_LABS=1 $(BIN)/python -m pytest tests/test_never_stuck.py tests/test_search_storage.py tests/test_cluster_*.py $(ARGS)

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/pyright --warnings

ui: .venv/installed
	MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false \
	$(BIN)/mlflow ui --host 127.0.0.1 --port 5000 --backend-store-uri $${MLFLOW_TRACKING_URI:-sqlite:///results/mlflow.db}

search: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[search]'
	$(BIN)/optuna-dashboard --host 127.0.0.1 --port 8080 $${OPTUNA_STORAGE:-sqlite:///results/optuna.db}

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Palimpsest needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf .venv results
