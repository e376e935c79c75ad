import os
import subprocess

import pytest

from sftctl.machine import Machine, cpu_quota, ram_free, usage_of


@pytest.mark.parametrize(("text", "cores"), [("150000 100000", 1.5), ("max 100000", None)])
def test_the_cpu_quota_is_read_from_cgroup_v2(tmp_path, text, cores):
    (tmp_path / "cpu.max").write_text(f"{text}\n")
    assert cpu_quota(tmp_path, tmp_path) == cores


@pytest.mark.parametrize(("quota", "cores"), [("50000", 0.5), ("-1", None)])
def test_the_cpu_quota_is_read_from_cgroup_v1(tmp_path, quota, cores):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cpu_quota(tmp_path, tmp_path) == cores


def test_without_cgroups_there_is_no_quota(tmp_path):
    assert cpu_quota(tmp_path, tmp_path) is None


def test_a_quota_leaves_less_than_the_cores_that_are_seen():
    assert Machine(8, 1.5, None, 1024).cores == 1.5
    assert Machine(8, None, None, 1024).cores == 8


def test_this_machine_has_a_core_and_this_process_takes_memory():
    assert Machine.here().usable_cores >= 1
    usage = usage_of([os.getpid()])
    assert 1e6 < usage.pss_bytes <= usage.rss_bytes
    assert usage.open_files >= 3


def test_a_process_that_is_gone_holds_nothing():
    process = subprocess.Popen(["true"])
    process.wait()
    assert usage_of([process.pid]) == usage_of([])


def test_the_quota_of_a_group_far_above_counts(tmp_path):
    (tmp_path / "self").mkdir()
    (tmp_path / "self/cgroup").write_text("0::/pods/pod7/box\n")
    (tmp_path / "pods/pod7/box").mkdir(parents=True)
    (tmp_path / "pods/pod7/box/cpu.max").write_text("400000 100000\n")
    (tmp_path / "pods/cpu.max").write_text("250000 100000\n")
    assert cpu_quota(tmp_path, tmp_path) == 2.5


@pytest.mark.parametrize(
    ("folder", "limit", "used"),
    [
        (".", "memory.max", "memory.current"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ],
)
def test_free_memory_is_that_of_the_machine_or_of_the_group_whichever_is_less(
    tmp_path, folder, limit, used
):
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 4000 kB\n")
    assert ram_free(tmp_path, tmp_path) == 4_096_000
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / limit).write_text("3000000\n")
    (tmp_path / folder / used).write_text("1000000\n")
    assert ram_free(tmp_path, tmp_path) == 2_000_000
    (tmp_path / folder / limit).write_text("max\n")
    assert ram_free(tmp_path, tmp_path) == 4_096_000
