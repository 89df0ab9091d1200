"""The robot-stack command: light, lazy, and clear about what went wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from robot_stack import __version__, cli
from robot_stack.errors import ConfigError

HEAVY = {"numpy", "zmq", "yaml", "h5py", "rich", "cv2", "mujoco", "torch", "dynamixel_sdk"}
OURS = {"hardware", "policies", "server", "collect", "benchmarks"}


def robot_stack(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "robot_stack", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def test_help_imports_no_subcommand_and_nothing_heavy() -> None:
    script = (
        "import json, sys\n"
        "from robot_stack.cli import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert "argparse" in loaded
    assert not loaded & (HEAVY | OURS)
    for name, (_, text) in cli.SUBCOMMANDS.items():
        assert name in done.stdout
        assert text in done.stdout


EVERY_HELP = """
import contextlib, io, json, traceback
from robot_stack import cli
answers = {}
for name in cli.SUBCOMMANDS:
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            answers[name] = [cli.main([name, "--help"]), out.getvalue()]
    except SystemExit as end:
        answers[name] = [end.code, out.getvalue()]
    except Exception:
        answers[name] = [1, traceback.format_exc()]
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def helps() -> dict[str, tuple[int, str]]:
    """Exit status and output of each subcommand's --help."""
    done = subprocess.run(
        [sys.executable, "-c", EVERY_HELP], capture_output=True, text=True, timeout=120, check=True
    )
    answers: dict[str, tuple[int, str]] = json.loads(done.stdout)
    return answers


@pytest.mark.parametrize("name", cli.SUBCOMMANDS)
def test_every_subcommand_explains_itself(helps: dict[str, tuple[int, str]], name: str) -> None:
    status, text = helps[name]
    assert status == 0, text
    usage, _, rest = text.partition("\n\n")
    assert usage.startswith(f"usage: robot-stack {name} ")
    description = rest.partition("\n\n")[0]
    assert len(description) > len(cli.SUBCOMMANDS[name][1]), "a help must teach"
    assert "robot-stack" in rest, "a help shows an example"


def test_version() -> None:
    assert robot_stack("--version").stdout == f"robot-stack {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["recrd"], "no command is called 'recrd'; did you mean 'record'?"),
        (["xyzzy"], "no command is called 'xyzzy'. See `robot-stack --help`"),
        ([], "the following arguments are required: COMMAND"),
        (["serve", "--nonsense", "x"], "unrecognized arguments: --nonsense"),
    ],
)
def test_wrong_usage_is_two(arguments: list[str], words: str) -> None:
    done = robot_stack(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_errors_are_one_line_without_traceback() -> None:
    done = robot_stack("serve", "/nowhere/station.yaml")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: cannot read station file /nowhere/station.yaml")
    assert len(done.stderr.splitlines()) == 1


def command(path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """A subcommand ``probe`` whose module runs ``body``."""
    module = f"probe_{path.name}".replace("-", "_")
    (path / f"{module}.py").write_text(
        f"def add_arguments(parser):\n    parser.add_argument('--n', type=int, default=0)\n"
        f"def run(args):\n    {body}\n"
    )
    monkeypatch.syspath_prepend(str(path))
    monkeypatch.setitem(cli.SUBCOMMANDS, "probe", (module, "a probe"))


def test_exit_status_is_the_subcommands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command(tmp_path, monkeypatch, "return args.n + (args.command == 'probe')")
    assert cli.main(["probe", "--n", "6"]) == 7


def test_interrupt_is_130(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command(tmp_path, monkeypatch, "raise KeyboardInterrupt")
    assert cli.main(["probe"]) == 130


def test_a_bug_is_not_dressed_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command(tmp_path, monkeypatch, "import no_such_module_of_ours")
    with pytest.raises(ModuleNotFoundError):
        cli.main(["probe"])


def test_a_missing_extra_is_named_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command(tmp_path, monkeypatch, "import pyrealsense2")
    monkeypatch.setitem(sys.modules, "pyrealsense2", None)  # as if it were not installed
    assert cli.main(["probe"]) == 1
    assert "pip install 'robot-stack[realsense]'" in capsys.readouterr().err


def test_a_missing_system_library_is_named_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "libusb-1.0.so.0: cannot open shared object file: No such file or directory"
    command(tmp_path, monkeypatch, f"raise ImportError('{text}', name='pyrealsense2.core')")
    assert cli.main(["probe"]) == 1
    error = capsys.readouterr().err
    assert "'pyrealsense2', which does not load (libusb-1.0.so.0: cannot open" in error
    assert error.endswith(": sudo apt-get install -y libusb-1.0-0\n")


def test_our_errors_are_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    body = f"from {ConfigError.__module__} import ConfigError; raise ConfigError('bad key')"
    command(tmp_path, monkeypatch, body)
    assert cli.main(["probe"]) == 1
    assert capsys.readouterr() == ("", "error: bad key\n")


def test_output_into_a_closed_pipe_is_no_traceback() -> None:
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "robot_stack", "bench"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait(60) == 141


def test_bench_lists_every_benchmark_without_importing_it() -> None:
    done = robot_stack("bench")
    assert done.returncode == 0
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert "loop" in names
    assert all(len(line.split()) > 3 for line in done.stdout.splitlines())
