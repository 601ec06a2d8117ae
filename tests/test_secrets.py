"Jobs on other hosts: what stands in a command line, and what does not."

import os
import sys

import nbformat
import pytest

from simpsons_llm.machine.cli import main
from simpsons_llm.ranks.launch import CARRIED, LAUNCHERS, is_secret, launch_commands, mpi_kind, read_hosts

SECRET = {
    "HF_TOKEN": "hf_abcdefgh",
    "HF_HUB_TOKEN": "hf_ijklmnop",
    "SIMPSONS_LLM_API_KEY": "key-qrstuvwx",
    "CCL_password": "open-sesame",
    "HF_APIKEY": "yzyzyzyz",
    "HF_ENDPOINT": "https://me:swordfish@hub.example",
}
OPEN = {
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HOME": "/hub",
    "HF_TOKEN_PATH": "/hub/token",
    "OMP_NUM_THREADS": "3",
    "PATH": "/bin",
    "NCCL_DEBUG": "INFO",
    "MASTER_ADDR": "a",
    "FI_PROVIDER": "tcp",
}


@pytest.mark.parametrize("launcher", LAUNCHERS[1:])
@pytest.mark.parametrize("hosts", [(), (("a", 1), ("b", 1))])
def test_no_secret_stands_in_a_command(launcher, hosts):
    for command, more in launch_commands(launcher, 2, ["simpsons-llm", "rank"], list(hosts), env={**SECRET, **OPEN}):
        text = " ".join(command)
        assert not any(value in text for value in SECRET.values()) and not set(more) & set(SECRET)
        if launcher == "torchrun" and hosts:
            assert all(f"{k}={v}" in text for k, v in OPEN.items())


def test_all_that_is_carried_is_carried_but_secrets():
    assert all(is_secret(k, v) for k, v in SECRET.items()) and not any(is_secret(k, v) for k, v in OPEN.items())
    assert all(k.startswith(CARRIED) for k in (*SECRET, *OPEN))
    assert not any(map(is_secret, ("HF_KEYBOARD", "NCCL_SOCKET_IFNAME", "HF_TOKENIZER", "XDG_CACHE_HOME")))


@pytest.mark.parametrize("launcher", ["torchrun", "mpich"])
def test_a_real_launch_shows_no_secret(launcher, tmp_path, monkeypatch, capfd):
    "What the remote shell is called with is written down; the parameters lie in a file of their owner's meanwhile."
    if launcher != "torchrun" and mpi_kind() != launcher:
        pytest.skip(f"the mpirun of {launcher} is not on PATH")
    rsh, cell = tmp_path / "shell", nbformat.v4.new_code_cell
    rsh.write_text(
        f'#!/bin/bash\nprintf "%s\\n" "$*" >> {tmp_path}/called\nwhile [[ $1 == -* ]]; do shift; done\nshift\n'
        + ('exec "$@"\n' if launcher == "torchrun" else 'exec bash -c "$*"\n')
    )
    rsh.chmod(0o755)
    nbformat.write(
        nbformat.v4.new_notebook(
            cells=[
                cell("word = 'none'", metadata={"tags": ["parameters"]}),
                cell(
                    "import os, stat\n"
                    "print(word, oct(stat.S_IMODE(os.stat('run/.parameters.json').st_mode)), 'HF_TOKEN' in os.environ)"
                ),
            ]
        ),
        tmp_path / "own.ipynb",
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}")
    for name, value in SECRET.items():
        monkeypatch.setenv(name, value)
    # MPICH starts what is on its own host by itself
    host = "127.0.0.1" if launcher == "torchrun" else "127.0.0.2"
    assert (
        main(
            [
                "launch",
                "-n",
                "1",
                "own.ipynb",
                "--out",
                "run",
                "--launcher",
                launcher,
                "--hosts",
                host,
                "--rsh",
                str(rsh),
                "-p",
                "word",
                "woohoo",
            ]
        )
        == 0
    )
    out, called = capfd.readouterr().out, (tmp_path / "called").read_text()
    assert host in called and not any(value in called for value in SECRET.values())
    assert (
        nbformat.read(tmp_path / "run" / "rank0.ipynb", 4).cells[-1].outputs[0].text.startswith("woohoo 0o600")
        and not (tmp_path / "run" / ".parameters.json").exists()
    )
    told = [line for line in out.splitlines() if line.startswith("not carried")]
    assert len(told) == (launcher == "torchrun") and all(
        name in told[0] and "hf auth login" in told[0] for name in SECRET if told
    )
    assert not any(value in out for value in SECRET.values())


def test_a_host_that_is_an_option_is_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "hosts").write_text("# two\nnode1 slots=1\n-oProxyCommand=touch slots=1\n")
    for given in ("-oProxyCommand=touch", "a,-v", " -a:1, b:1", str(tmp_path / "hosts")):
        with pytest.raises(ValueError, match="begins with a dash"):
            read_hosts(given, 2)
    monkeypatch.chdir(tmp_path)
    assert (
        main(["launch", "-n", "2", "prepare", "--hosts", "a,-v"]) == 2
        and "'-v' begins with a dash" in capsys.readouterr().err
    )
    # ranks that are left over go to the first hosts
    assert read_hosts("a,b,c", 8) == [("a", 3), ("b", 3), ("c", 2)]
    assert read_hosts("node-1,me@node-2", 2) == [("node-1", 1), ("me@node-2", 1)]
