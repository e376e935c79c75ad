import os

import pytest

from sftctl.bench.machine import Machine, cpu_quota, rss_bytes


@pytest.mark.parametrize(("text", "cores"), [("150000 100000", 1.5), ("max 100000", None)])
def test_the_cpu_quota_is_read_from_cgroup_v2(tmp_path, text, cores):
    (tmp_path / "cpu.max").write_text(f"{text}\n")
    assert cpu_quota(tmp_path) == cores


@pytest.mark.parametrize(("quota", "cores"), [("50000", 0.5), ("-1", None)])
def test_the_cpu_quota_is_read_from_cgroup_v1(tmp_path, quota, cores):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cpu_quota(tmp_path) == cores


def test_without_cgroups_there_is_no_quota(tmp_path):
    assert cpu_quota(tmp_path) is None


def test_a_quota_leaves_less_than_the_cores_that_are_seen():
    assert Machine(8, 1.5, None, 1024).cores == 1.5
    assert Machine(8, None, None, 1024).cores == 8


def test_this_machine_has_a_core_and_this_process_takes_memory():
    assert Machine.here().usable_cores >= 1
    assert rss_bytes([os.getpid()]) > 1e6
