"Two hosts on one machine: network namespaces joined by a virtual cable. Skipped where namespaces may not be made."

import os
import shutil
import subprocess

import nbformat
import pytest
from conftest import CLI

from simpsons_llm.ranks.launch import mpi_kind

HOSTS = {"10.77.31.1": "slA", "10.77.31.2": "slB"}


def ip(*words, check=True):
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=check)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    "A program that runs a command on a host, as ssh does: `rsh HOST COMMAND`."
    if not shutil.which("ip"):
        pytest.skip("the program ip (iproute2) is not installed")
    mark = f"{os.getpid() % 10000}"
    names = {a: f"{n}{mark}" for a, n in HOSTS.items()}
    (a, na), (b, nb) = names.items()
    try:
        for n in (na, nb):
            ip("netns", "add", n)
        ip("link", "add", f"v{na}", "netns", na, "type", "veth", "peer", "name", f"v{nb}", "netns", nb)
        for address, n in names.items():
            ip("-n", n, "addr", "add", f"{address}/24", "dev", f"v{n}")
            ip("-n", n, "link", "set", f"v{n}", "up")
            ip("-n", n, "link", "set", "lo", "up")
    except (subprocess.CalledProcessError, PermissionError) as e:
        for n in (na, nb):
            ip("netns", "del", n, check=False)
        pytest.skip(f"network namespaces may not be made here: {getattr(e, 'stderr', e)}")
    rsh = tmp_path_factory.mktemp("bin") / "rsh"
    cases = "\n".join(f"    {address}) host={n};;" for address, n in names.items())
    rsh.write_text(
        "#!/bin/bash\nwhile [[ $1 == -* ]]; do shift; done\n"
        f'case $1 in\n{cases}\n    *) echo "no host $1" >&2; exit 1;;\nesac\n'
        'shift\nexec ip netns exec $host bash -c "$*"\n'
    )
    rsh.chmod(0o755)
    yield rsh, na, nb
    for n in (na, nb):
        ip("netns", "del", n, check=False)


def notebook(path):
    cell = nbformat.v4.new_code_cell
    nbformat.write(
        nbformat.v4.new_notebook(
            cells=[
                cell(
                    "import os\n"
                    "from simpsons_llm.machine.device import *\n"
                    "from simpsons_llm.machine.distributed import *\n"
                    "r = find_ranks()\n"
                    "print(join_group(r, find_device('cpu'), timeout_s=60), gather(os.readlink('/proc/self/ns/net')), "
                    "total(r.rank + 1), r.local_rank, r.local_world_size)"
                )
            ]
        ),
        path,
    )


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "mpich"])
def test_two_hosts(launcher, hosts, tmp_path):
    rsh, na, nb = hosts
    if launcher != "torchrun" and mpi_kind() != launcher:
        pytest.skip(f"the mpirun of {launcher} is not on PATH")
    notebook(tmp_path / "own.ipynb")
    command = [
        *CLI,
        "launch",
        "-n",
        "2",
        "own.ipynb",
        "--out",
        "run",
        "--launcher",
        launcher,
        "--hosts",
        ",".join(HOSTS),
        "--rsh",
        str(rsh),
    ]
    done = subprocess.run(
        ["ip", "netns", "exec", na, *command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr + (tmp_path / "run" / "launcher.log").read_text()
    said = [nbformat.read(tmp_path / "run" / f"rank{r}.ipynb", 4).cells[-1].outputs[0].text for r in range(2)]
    assert all(s.startswith("gloo ['net:[") and s.rstrip().endswith("[3.0] 0 1") for s in said), said
    assert len(set(said[0].split("'")[1:4:2])) == 2  # each rank really was in a network of its own
