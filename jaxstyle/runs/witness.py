"""Reads what JAX's C++ writes in one of several processes, and tells in a line why that ended. Effects only.

    python witness.py COMMAND INDEX

JAX ends a process that has lost others at once, with pages of text: what they come to is said here. It outlives that
process by a moment, and has its standard output open until then, so that who reads both to their end has the line.
"""

import re
import signal
import sys

#: What the text of a lost process has in it, and what it means.
MEANINGS = (
    (r"unhealthy \(stopped sending heartbeats\):\s+([\d\s]*\d)", "process {} is gone"),
    (r"The first task at the barrier: (\d+)", "process {} has ended before the others"),
    (r"RPC: \S*RegisterTask", "not all processes were started in time, or they do not reach --coordinator"),
    (r"Failed to send RPC to coordination service|Socket closed", "process 0 is gone"),
)


def main() -> None:
    command, index = sys.argv[1:]
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # it is there to the end
    held = ""
    sys.stdin.reconfigure(errors="backslashreplace")
    for line in sys.stdin:
        if held or re.search("coordination|client.h:|preemption_sync", line):
            held += line
        elif not re.search("Gloo|peer ranks|add_port", line):  # which Python is told too
            sys.stderr.write(line)
            sys.stderr.flush()
    for pattern, meaning in MEANINGS:
        if found := re.search(pattern, held):
            told = meaning.format(", ".join(" ".join(found.groups()).split()))
            print(
                f"{command}: process {index} ends, as {told}; the same command goes on from the last checkpoint",
                file=sys.stderr,
            )
            return
    sys.stderr.write(held)


if __name__ == "__main__":
    main()
