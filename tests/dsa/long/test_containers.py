"""Memory that cgroups allow, of both versions, from trees of files as Linux shows them."""

import psutil
import pytest
import torch

from indexcache.dsa.long import capacity
from indexcache.dsa.long.containers import Allowance, allowance

GB = 1 << 30
CPU = torch.device("cpu")
V2 = "30 24 0:26 {group} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1 = "35 31 0:32 {group} /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory"


def tree(root, membership, mount, groups):
    """Files of ``groups`` under their folders, and what the kernel says of this process's group and of mounts."""
    proc = root / "proc/self"
    proc.mkdir(parents=True)
    (proc / "cgroup").write_text(f"{membership}\n")
    (proc / "mountinfo").write_text(f"23 1 0:20 / /proc rw - proc proc rw\n{mount}\n")
    for folder, files in groups.items():
        (root / "sys/fs/cgroup" / folder).mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (root / "sys/fs/cgroup" / folder / name).write_text(f"{content}\n")


def group_of_version_2(limit, used, files=0, high="max"):
    stat = f"anon 5\ninactive_file {files}\nactive_file 0\nshmem 7"
    return {"memory.max": limit, "memory.high": high, "memory.current": used, "memory.stat": stat}


def group_of_version_1(limit, used, files=0, above=(1 << 63) - 4096):
    stat = f"total_inactive_file {files}\ntotal_active_file {files}\nhierarchical_memory_limit {above}"
    return {"memory.limit_in_bytes": limit, "memory.usage_in_bytes": used, "memory.stat": stat}


def test_a_container_that_sees_its_own_group_alone(tmp_path):
    groups = {".": group_of_version_2(16 * GB, 6 * GB, files=2 * GB)}
    tree(tmp_path, "0::/", V2.format(group="/"), groups)
    assert allowance(tmp_path) == Allowance(16 * GB, 12 * GB), "files that the kernel keeps can be given back"


def test_the_tightest_of_the_groups_above_counts(tmp_path):
    """As a scheduler nests a job's steps; one group limits all, another is nearly full."""
    groups = {
        "job/step/task": group_of_version_2("max", GB),
        "job/step": group_of_version_2(64 * GB, GB),
        "job": group_of_version_2(100 * GB, 98 * GB),
    }
    tree(tmp_path, "0::/job/step/task", V2.format(group="/"), groups)
    assert allowance(tmp_path) == Allowance(64 * GB, 2 * GB)


def test_what_slows_a_process_down_is_a_limit_too(tmp_path):
    tree(tmp_path, "0::/", V2.format(group="/"), {".": group_of_version_2("max", 3 * GB, high=8 * GB)})
    assert allowance(tmp_path) == Allowance(8 * GB, 5 * GB)


@pytest.mark.parametrize("path", ["/docker/abc", "/", "/../.."])
def test_a_container_under_version_1_by_whatever_name_it_has_outside(path, tmp_path):
    groups = {"memory": group_of_version_1(16 * GB, 6 * GB, files=GB)}
    membership = f"4:cpu,cpuacct:/elsewhere\n3:memory:{path}\n0::/unified"
    tree(tmp_path, membership, V1.format(group="/docker/abc"), groups)
    assert allowance(tmp_path) == Allowance(16 * GB, 12 * GB)


def test_a_limit_of_groups_that_cannot_be_seen(tmp_path):
    groups = {"memory": group_of_version_1((1 << 63) - 4096, GB, above=4 * GB)}
    tree(tmp_path, "3:memory:/", V1.format(group="/"), groups)
    assert allowance(tmp_path) == Allowance(4 * GB, 3 * GB)


def test_a_folder_with_a_blank_in_its_name(tmp_path):
    mount = V2.format(group="/").replace("/sys/fs/cgroup", r"/sys/fs/cgroup/my\040groups")
    tree(tmp_path, "0::/", mount, {"my groups": group_of_version_2(8 * GB, 8 * GB + 1)})
    assert allowance(tmp_path) == Allowance(8 * GB, 0)


def test_nothing_is_limited(tmp_path):
    assert allowance(tmp_path) is None, "no Linux"
    tree(tmp_path, "0::/", V2.format(group="/"), {".": group_of_version_2("max", GB)})
    assert allowance(tmp_path) is None


def test_host_memory_is_what_a_container_is_allowed_of_it(monkeypatch):
    monkeypatch.setattr(capacity, "allowance", lambda: Allowance(3000, 2000))
    assert (capacity.whole_memory(CPU), capacity.free_memory(CPU)) == (3000, 2000)
    assert capacity.process_memory(CPU, processes=2) == 1000
    monkeypatch.setattr(capacity, "allowance", lambda: Allowance(1 << 60, 1 << 60))
    assert capacity.whole_memory(CPU) == psutil.virtual_memory().total
