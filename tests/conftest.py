"""Which tests share a machine: files that start Ray, or look for one, take turns; the others run beside them.

A driver finds its machine's cluster by what Ray leaves under /tmp/ray, so two at once would find each other.
"""

import pytest

RAY = {
    "test_chaos", "test_cluster_aws_up", "test_cluster_onprem", "test_cluster_slurm", "test_doctor",
    "test_engine_input", "test_engine_kill", "test_engine_run", "test_engine_study", "test_engine_tracking",
    "test_never_stuck", "test_parallel", "test_search", "test_stale", "test_studies",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        file = item.path.stem
        item.add_marker(pytest.mark.xdist_group("ray" if file in RAY else file))
