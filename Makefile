# make study    the encoder ablation on the built-in corpus: no GPU, no download     (ARGS="--seeds 4" adds a seed)
# make test     everything that can be checked, from an empty machine
# make ui       compare arms in MLflow, on http://127.0.0.1:5000

PYTHON ?= python3
BIN    := .venv/bin

.PHONY: study test ui lint clean

study: .venv/installed
	$(BIN)/python studies/ablation_encoder.py $(ARGS)

test: lint
	$(BIN)/python -m pytest $(ARGS)

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/pyright --warnings

ui: .venv/installed
	MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false \
	$(BIN)/mlflow ui --host 127.0.0.1 --port 5000 --backend-store-uri $${MLFLOW_TRACKING_URI:-sqlite:///results/mlflow.db}

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
