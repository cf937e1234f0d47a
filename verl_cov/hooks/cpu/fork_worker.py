"""Starts one Ray worker as a fork of the fork server, and stands for it until it ends. A script for Ray's raylet.

It takes the arguments of Ray's own ``ray/_private/workers/setup_worker.py``, and leaves the worker to that script
whenever a fork would not be the same. It imports nothing but the standard library, of which little: it is started once
a worker.
"""

import json
import os
import signal
import socket
import sys

SOCKET = "VERL_COV_FORK_SERVER"  # names the fork server's socket in the environment

# Variables by which one worker differs from another. What reads them does so when it runs, not when it is imported.
OF_ONE_WORKER = (
    *("RAY_", "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "WG_", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"),
    *("VERL_FILE_LOGGER_PATH", "VLLM_CPU_KVCACHE_SPACE", "VLLM_PORT", "SPT_NOENV", "SHLVL", "PWD", "OLDPWD"),
)
OF_ALL = ("RAY_JOB_ID", "RAY_RAYLET_PID")  # Ray reads these two once, when it is imported


def same(one, other):
    """True if two environments differ in variables of one worker alone."""
    differ = {key for key in {*one, *other} if one.get(key) != other.get(key)}
    return all(key == "_" or (key.startswith(OF_ONE_WORKER) and key not in OF_ALL) for key in differ)


def request(arguments):
    """What to ask the fork server for, or None if Ray's own script has to start the worker."""
    context, language, own = {}, None, []
    for argument in arguments:
        if argument.startswith("--serialized-runtime-env-context="):
            context = json.loads(argument.partition("=")[2] or "{}")
        elif argument.startswith("--language="):
            language = argument.partition("=")[2]
        else:
            own.append(argument)
    env_vars = context.get("env_vars") or {}
    plain = (
        language == "PYTHON"
        and not context.get("command_prefix")
        and not context.get("override_worker_entrypoint")
        and context.get("py_executable", sys.executable) == sys.executable
        and not any("$" in value for value in env_vars.values())
    )
    environment = {**os.environ, **env_vars}
    return {"arguments": own, "environment": environment, "folder": os.getcwd()} if plain else None


def fork(path, wanted):
    """The connection to the fork server and the number of the new process, or None if the server refuses."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    message = json.dumps(wanted).encode()
    socket.send_fds(connection, [len(message).to_bytes(8, "big")], [0, 1, 2])
    connection.sendall(message)
    answer = connection.recv(32)  # after the server's imports
    if not answer or answer == b"no":
        return None
    return connection, int(answer)


def main():
    arguments = sys.argv[1:]
    wanted = request(arguments)
    try:
        forked = fork(os.environ[SOCKET], wanted) if wanted else None
    except (KeyError, OSError):
        forked = None
    if forked is None:
        own = os.path.join(os.path.dirname(arguments[0]), "setup_worker.py")
        os.execv(sys.executable, [sys.executable, own, *arguments])
    connection, pid = forked
    signal.signal(signal.SIGTERM, lambda number, frame: os.kill(pid, number))
    status = b""
    while not status:
        try:
            status = connection.recv(32)
            break
        except InterruptedError:
            continue
    sys.exit(int(status) if status else 1)


if __name__ == "__main__":
    main()
