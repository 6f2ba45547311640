# make study           the encoder ablation on the built-in corpus: no GPU, no download     (ARGS="--seeds 4" adds a seed)
# make test            everything that can be checked, from an empty machine
# make test-cluster    the cluster files on pretend clouds and hosts; labs want root and, from apt, openssh-server rsync
#                      iproute2 postgresql; a test whose tool is not there skips, and says why
# make test-clouds     of these what takes seconds: no root, no apt, no lab
# make ui              compare arms in MLflow, on http://127.0.0.1:5000
# make search          look at searches in optuna-dashboard, on http://127.0.0.1:8080

PYTHON ?= python3
BIN    := .venv/bin

.PHONY: study test test-cluster test-clouds ui search lint clean

study: .venv/installed
	$(BIN)/python studies/ablation_encoder.py $(ARGS)

test: lint
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile $(ARGS)

test-cluster: .venv/installed-clouds .venv-azure/installed
	PALIMPSEST_LABS=1 $(BIN)/python -m pytest tests/test_never_stuck.py tests/test_search*.py tests/test_cluster_*.py $(ARGS)
	.venv-azure/bin/python -m pytest tests/test_cluster_azure.py $(ARGS)

test-clouds: .venv/installed-clouds .venv-azure/installed
	$(BIN)/python -m pytest tests/test_cluster_aws.py tests/test_cluster_gcp.py tests/test_cluster_database.py \
		tests/test_cluster_kubernetes.py $(ARGS)
	.venv-azure/bin/python -m pytest tests/test_cluster_azure.py $(ARGS)

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/pyright --warnings

ui: .venv/installed
	MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false \
	$(BIN)/mlflow ui --host 127.0.0.1 --port 5000 --backend-store-uri $${MLFLOW_TRACKING_URI:-sqlite:///results/mlflow.db}

search: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[search]'
	storage=$${OPTUNA_STORAGE:-$$(ls results/optuna.journal 2> /dev/null || echo results/optuna.db)}; \
	case "$$storage" in *://* | *.journal) ;; *) storage="sqlite:///$$storage" ;; esac; \
	$(BIN)/optuna-dashboard --host 127.0.0.1 --port 8080 "$$storage"

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Palimpsest needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

.venv/installed-clouds: .venv/installed-test
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test-cluster]'
	touch $@

# Azure's packages in the releases that Ray knows, which nothing else must be held back by: over what .venv has.
.venv-azure/installed: .venv/installed-test
	test -x .venv-azure/bin/python || $(PYTHON) -m venv .venv-azure
	$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' \
		> "$$(.venv-azure/bin/python -c 'import site; print(site.getsitepackages()[0])')/over.pth"
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["azure"])' \
		| xargs .venv-azure/bin/python -m pip install --quiet
	touch $@

clean:
	rm -rf .venv .venv-azure results
