from pathlib import Path

import pytest

from tidegate.server.cpu import usable_cpus


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def v2(group: str, quotas: dict[str, str]) -> dict[str, str]:
    return {
        "proc/self/cgroup": f"0::{group}\n",
        **{f"sys/fs/cgroup/{at}cpu.max": quota for at, quota in quotas.items()},
    }


@pytest.mark.parametrize(
    ("files", "affinity", "expected"),
    [
        pytest.param({}, 6, 6, id="no cgroup: the affinity"),
        pytest.param(v2("/", {"": "200000 100000\n"}), 8, 2, id="v2 in its own namespace"),
        pytest.param(v2("/", {"": "max 100000\n"}), 8, 8, id="v2 without a quota"),
        pytest.param(v2("/a/b", {"a/b/": "max 100000", "a/": "300000 100000"}), 8, 3, id="v2: a parent's quota"),
        pytest.param(v2("/a/b", {"a/b/": "400000 100000", "a/": "300000 100000"}), 8, 3, id="v2: the tightest quota"),
        pytest.param(v2("/a/b", {"a/b/": "200000 100000", "a/": "300000 100000"}), 8, 2, id="v2: its own is tighter"),
        pytest.param(v2("/host/only", {"": "200000 100000"}), 8, 2, id="v2: the host's path, the container's mount"),
        pytest.param(v2("/", {"": "150000 100000"}), 8, 2, id="a fraction counts up"),
        pytest.param(v2("/", {"": "20000 100000"}), 8, 1, id="never less than one"),
        pytest.param(v2("/", {"": "1600000 100000"}), 4, 4, id="a quota above the affinity"),
        pytest.param(v2("/", {"": "nonsense"}), 4, 4, id="what cannot be read is no bound"),
        pytest.param(v2("/", {"": "0 0"}), 4, 4, id="zero is no quota"),
        pytest.param(
            {
                "proc/self/cgroup": "5:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n0::/docker/x\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            8,
            3,
            id="v1 in a container",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "4:cpu:/slice\n",
                "sys/fs/cgroup/cpu/slice/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/slice/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            8,
            1,
            id="v1: no quota of its own, one above",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/\n0::/app\n",
                "sys/fs/cgroup/unified/app/cpu.max": "500000 100000",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "200000",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            8,
            2,
            id="both at once: the tighter",
        ),
    ],
)
def test_the_tightest_bound_counts(tmp_path: Path, files: dict[str, str], affinity: int, expected: int) -> None:
    assert usable_cpus(tree(tmp_path, files), affinity) == expected


def test_this_machine_has_a_cpu() -> None:
    assert usable_cpus() >= 1
