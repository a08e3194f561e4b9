"""LAPACK's threads, which would take the cores from XLA's."""

import threadpoolctl

from jaxstyle.runs import threads


def lapack():
    return {each["num_threads"] for each in threadpoolctl.threadpool_info() if each["user_api"] == "blas"}


def test_lapack_keeps_to_one_thread_for_a_while():
    with threadpoolctl.threadpool_limits(2, "blas"):
        before = lapack()
        with threads.one_for_lapack():
            assert lapack() == {1}
        assert lapack() == before
