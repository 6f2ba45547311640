"""The engine that all studies share, and the only home of Ray, MLflow and Optuna.

    Study --plan--> cells and shared stages --run--> ledger --report--> table, outcome.json
                                              └-> outbox --tracking--> MLflow

A cell is one resolved trial with its seed; its key says what it is.  Running a command again is therefore the resume,
the retry and the extension: what the ledger has is not run, what the store has is not made, what MLflow has stays.
"""
